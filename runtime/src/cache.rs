//! The key-value cache: pools of pages, and the sequences that hold them.
//!
//! A model keeps rows of states from step to step. States with the same window form a group; a group's pool holds pages
//! of a fixed number of positions, each with the rows of all its states in all layers. A sequence is, in each group, a list
//! of pages. Pages can belong to several sequences with the same beginning; the last one is copied before it is written.
//! Pages that no later position can see, because of the window, go back to the pool.

use einfuse_codegen::{CacheGroup, PageTable};

use crate::Error;
use crate::memory::Memory;

/// The pools of all groups.
#[derive(Debug)]
pub(crate) struct Cache {
    pools: Vec<Pool>,
}

#[derive(Debug)]
struct Pool {
    group: CacheGroup,
    memory: Memory,
    /// For each page, how many sequences hold it.
    holders: Vec<u32>,
    /// The pages that no sequence holds, the next to take last.
    free: Vec<u32>,
    /// The pages from here on have never been written.
    untouched: u32,
}

/// One sequence's pages; it has to be given back by [`Cache::release`].
#[derive(Debug, Default)]
pub(crate) struct Sequence {
    tables: Vec<Table>,
    positions: usize,
}

#[derive(Debug, Default)]
struct Table {
    /// The page of each run of positions; those before `first` were given back, and their entries name any page.
    pages: Vec<u32>,
    first: usize,
}

impl Sequence {
    /// How many positions are cached.
    pub(crate) fn positions(&self) -> usize {
        self.positions
    }
}

impl Cache {
    /// Pools for `sequences` sequences of up to `context` positions that grow by at most `chunk` at a time. Memory is
    /// taken up only as pages are written.
    pub(crate) fn new(groups: &[CacheGroup], context: usize, sequences: usize, chunk: usize) -> Result<Cache, Error> {
        let pools = groups.iter().map(|group| {
            let page = group.page_positions.max(1);
            let all = context.div_ceil(page);
            let pages = match group.window {
                // What the window spans and the chunk adds can begin and end within a page.
                Some(window) => all.min(window.saturating_add(chunk).div_ceil(page) + 1),
                None => all,
            };
            Pool::new(group, pages.saturating_mul(sequences))
        });
        Ok(Cache { pools: pools.collect::<Result<_, _>>()? })
    }

    /// Makes room for `tokens` more positions: takes pages, and copies a shared page that would be written.
    ///
    /// # Errors
    /// If a pool has too few pages left; the sequence is as before then.
    pub(crate) fn reserve(&mut self, sequence: &mut Sequence, tokens: usize) -> Result<(), Error> {
        sequence.tables.resize_with(self.pools.len(), Table::default);
        let past = sequence.positions;
        for (pool, table) in self.pools.iter().zip(&sequence.tables) {
            let asked = pool.missing(table, past, tokens);
            if asked > pool.free.len() {
                let (free, total) = (pool.free.len(), pool.holders.len());
                return Err(Error::CacheFull { asked, positions: pool.group.page_positions, free, total });
            }
        }
        for (pool, table) in self.pools.iter_mut().zip(&mut sequence.tables) {
            if let Some(at) = pool.to_copy(table, past) {
                let shared = table.pages[at];
                if let Some(page) = pool.take() {
                    let bytes = pool.group.page_bytes;
                    let start = shared as usize * bytes;
                    pool.memory.copy_within(start..start + bytes, page as usize * bytes);
                    pool.drop_page(shared);
                    table.pages[at] = page;
                }
            }
            for _ in table.pages.len()..pool.pages_of(past + tokens) {
                table.pages.extend(pool.take());
            }
        }
        Ok(())
    }

    /// The pages for a step, group by group.
    pub(crate) fn tables<'a>(&'a mut self, sequence: &'a Sequence) -> Vec<PageTable<'a>> {
        let pools = self.pools.iter_mut().zip(&sequence.tables);
        pools.map(|(pool, table)| PageTable { memory: &mut pool.memory, pages: &table.pages }).collect()
    }

    /// Notes that a step has written `tokens` more positions; gives back the pages that no later one can see.
    pub(crate) fn commit(&mut self, sequence: &mut Sequence, tokens: usize) {
        sequence.positions += tokens;
        for (pool, table) in self.pools.iter_mut().zip(&mut sequence.tables) {
            let Some(window) = pool.group.window else { continue };
            // Position t sees those above t - window; the next t is `positions`.
            let oldest = (sequence.positions + 1).saturating_sub(window);
            let first = (oldest / pool.group.page_positions).min(table.pages.len());
            for page in &mut table.pages[table.first..first] {
                pool.drop_page(std::mem::replace(page, 0));
            }
            table.first = table.first.max(first);
        }
    }

    /// Shortens a sequence to its first positions. It is empty afterwards if their windows need what was given back.
    pub(crate) fn rewind(&mut self, sequence: &mut Sequence, positions: usize) {
        if positions >= sequence.positions {
            return;
        }
        let gone = self.pools.iter().zip(&sequence.tables).any(|(pool, table)| {
            let oldest = pool.group.window.map_or(0, |window| (positions + 1).saturating_sub(window));
            oldest / pool.group.page_positions < table.first
        });
        if gone {
            return self.release(sequence);
        }
        sequence.positions = positions;
        for (pool, table) in self.pools.iter_mut().zip(&mut sequence.tables) {
            let kept = pool.pages_of(positions).max(table.first).min(table.pages.len());
            for page in table.pages.drain(kept..) {
                pool.drop_page(page);
            }
        }
    }

    /// Another sequence with the same positions, which shares this one's pages.
    pub(crate) fn fork(&mut self, sequence: &Sequence) -> Sequence {
        let tables = self.pools.iter_mut().zip(&sequence.tables).map(|(pool, table)| {
            let held = pool.pages_of(sequence.positions).min(table.pages.len());
            for &page in &table.pages[table.first..held] {
                pool.holders[page as usize] += 1;
            }
            Table { pages: table.pages[..held].to_vec(), first: table.first }
        });
        Sequence { tables: tables.collect(), positions: sequence.positions }
    }

    /// Gives back all pages of a sequence, which is empty afterwards.
    pub(crate) fn release(&mut self, sequence: &mut Sequence) {
        let sequence = std::mem::take(sequence);
        for (pool, table) in self.pools.iter_mut().zip(sequence.tables) {
            for &page in &table.pages[table.first..] {
                pool.drop_page(page);
            }
        }
    }
}

impl Pool {
    fn new(group: &CacheGroup, pages: usize) -> Result<Pool, Error> {
        let bytes = pages.saturating_mul(group.page_bytes);
        let memory = Memory::new(bytes, "the cache (a smaller context needs less)")?.with_huge_pages();
        let pages = u32::try_from(pages).unwrap_or(u32::MAX);
        Ok(Pool {
            group: *group,
            memory,
            holders: vec![0; pages as usize],
            free: (0..pages).rev().collect(),
            untouched: 0,
        })
    }

    fn pages_of(&self, positions: usize) -> usize {
        positions.div_ceil(self.group.page_positions)
    }

    /// The entry of the page that the position after `past` falls into, if it is held by other sequences too.
    fn to_copy(&self, table: &Table, past: usize) -> Option<usize> {
        let at = past / self.group.page_positions;
        let page = *table.pages.get(at).filter(|_| at >= table.first)?;
        (self.holders[page as usize] > 1).then_some(at)
    }

    /// How many pages have to be taken to add `tokens` positions to `past`.
    fn missing(&self, table: &Table, past: usize, tokens: usize) -> usize {
        let copies = usize::from(self.to_copy(table, past).is_some());
        self.pages_of(past.saturating_add(tokens)).saturating_sub(table.pages.len()) + copies
    }

    /// Takes a page, all zero.
    fn take(&mut self) -> Option<u32> {
        let page = self.free.pop()?;
        self.holders[page as usize] = 1;
        if page < self.untouched {
            let start = page as usize * self.group.page_bytes;
            self.memory[start..start + self.group.page_bytes].fill(0);
        }
        self.untouched = self.untouched.max(page + 1);
        Some(page)
    }

    fn drop_page(&mut self, page: u32) {
        let holders = &mut self.holders[page as usize];
        *holders -= 1;
        if *holders == 0 {
            self.free.push(page);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(window: Option<usize>) -> CacheGroup {
        CacheGroup { window, page_positions: 4, page_bytes: 8 }
    }

    fn cache(window: Option<usize>, context: usize, sequences: usize) -> Cache {
        Cache::new(&[group(window)], context, sequences, 3).unwrap()
    }

    /// Adds positions, and writes the number of each as a step would: two bytes in its page.
    fn step(cache: &mut Cache, sequence: &mut Sequence, tokens: usize) -> Result<(), Error> {
        cache.reserve(sequence, tokens)?;
        let past = sequence.positions();
        for table in cache.tables(sequence) {
            for position in past..past + tokens {
                let at = table.pages[position / 4] as usize * 8 + position % 4 * 2;
                table.memory[at..at + 2].copy_from_slice(&(position as u16 + 1).to_le_bytes());
            }
        }
        cache.commit(sequence, tokens);
        Ok(())
    }

    /// What the sequence holds at each position that its window can still see.
    fn holds(cache: &mut Cache, sequence: &Sequence, window: usize) -> bool {
        let positions = sequence.positions();
        let oldest = (positions + 1).saturating_sub(window);
        cache.tables(sequence).iter().all(|table| {
            (oldest..positions).all(|position| {
                let at = table.pages[position / 4] as usize * 8 + position % 4 * 2;
                table.memory[at..at + 2] == (position as u16 + 1).to_le_bytes()
            })
        })
    }

    fn free(cache: &Cache) -> usize {
        cache.pools[0].free.len()
    }

    #[test]
    fn a_sequence_can_be_shortened() {
        let mut cache = cache(None, 20, 2);
        let mut sequence = Sequence::default();
        for tokens in [3, 3, 3] {
            step(&mut cache, &mut sequence, tokens).unwrap();
        }
        let mut fork = cache.fork(&sequence);
        assert_eq!(free(&cache), 7);
        for (to, positions, left) in [(20, 9, 7), (9, 9, 7), (8, 8, 7), (5, 5, 7)] {
            cache.rewind(&mut sequence, to);
            assert_eq!((sequence.positions(), free(&cache)), (positions, left));
            assert!(holds(&mut cache, &sequence, usize::MAX));
        }
        // What the other still has is not written.
        step(&mut cache, &mut sequence, 3).unwrap();
        assert!(holds(&mut cache, &sequence, usize::MAX) && holds(&mut cache, &fork, usize::MAX));
        cache.rewind(&mut fork, 0);
        assert_eq!((fork.positions(), free(&cache)), (0, 8));
        cache.rewind(&mut sequence, 1);
        assert_eq!(free(&cache), 9);
        cache.release(&mut sequence);
        assert_eq!(free(&cache), 10);
    }

    #[test]
    fn what_left_the_window_does_not_come_back() {
        let mut cache = cache(Some(5), 40, 1);
        let all = free(&cache);
        let mut sequence = Sequence::default();
        for tokens in [3; 5] {
            step(&mut cache, &mut sequence, tokens).unwrap();
        }
        // Position 14 sees from 10 on, and the pages before 8 were given back when there were 15.
        cache.rewind(&mut sequence, 14);
        assert_eq!(sequence.positions(), 14);
        assert!(holds(&mut cache, &sequence, 5));
        cache.rewind(&mut sequence, 9);
        assert_eq!((sequence.positions(), free(&cache)), (0, all));
        step(&mut cache, &mut sequence, 3).unwrap();
        assert!(holds(&mut cache, &sequence, 5));
    }

    #[test]
    fn pages_are_taken_as_needed_and_given_back() {
        let mut cache = cache(None, 20, 1);
        let mut sequence = Sequence::default();
        assert_eq!(free(&cache), 5);
        for (tokens, left) in [(1, 4), (3, 4), (1, 3), (3, 3), (3, 2), (2, 1)] {
            step(&mut cache, &mut sequence, tokens).unwrap();
            assert_eq!(free(&cache), left);
        }
        assert!(holds(&mut cache, &sequence, usize::MAX));
        cache.release(&mut sequence);
        assert_eq!((free(&cache), sequence.positions()), (5, 0));
    }

    #[test]
    fn a_full_pool_says_how_much_was_asked_for() {
        let mut cache = cache(None, 8, 1);
        let mut sequence = Sequence::default();
        step(&mut cache, &mut sequence, 5).unwrap();
        let error = step(&mut cache, &mut sequence, 8).unwrap_err().to_string();
        let expected = "the cache is full: 2 pages of 4 positions were asked for, 0 of 2 are free; load the model with \
                        a larger context or for more sequences, or end a sequence";
        assert_eq!(error, expected);
        step(&mut cache, &mut sequence, 3).unwrap();
        assert!(holds(&mut cache, &sequence, usize::MAX));
        assert!(matches!(cache.reserve(&mut sequence, usize::MAX), Err(Error::CacheFull { .. })));
    }

    #[test]
    fn a_window_is_a_ring() {
        for window in 1..12 {
            let mut cache = cache(Some(window), 1000, 1);
            let mut sequence = Sequence::default();
            let pages = free(&cache);
            assert!(pages <= (window + 3).div_ceil(4) + 1);
            for tokens in [1, 3, 2, 3, 3].into_iter().cycle().take(60) {
                step(&mut cache, &mut sequence, tokens).unwrap();
                assert!(holds(&mut cache, &sequence, window), "window {window}");
            }
            cache.release(&mut sequence);
            assert_eq!(free(&cache), pages);
        }
    }

    #[test]
    fn a_fork_shares_pages_until_it_writes() {
        let mut cache = cache(None, 20, 2);
        let mut one = Sequence::default();
        step(&mut cache, &mut one, 6).unwrap();
        let mut two = cache.fork(&one);
        let mut three = cache.fork(&one);
        assert_eq!(free(&cache), 8);
        step(&mut cache, &mut two, 1).unwrap(); // copies the second page
        assert_eq!(free(&cache), 7);
        step(&mut cache, &mut one, 1).unwrap(); // and so does this: `three` still has it
        assert_eq!(free(&cache), 6);
        cache.release(&mut two);
        assert_eq!(free(&cache), 7);
        step(&mut cache, &mut three, 7).unwrap();
        assert!(holds(&mut cache, &one, usize::MAX) && holds(&mut cache, &three, usize::MAX));
        let table = &cache.tables(&one)[0];
        assert_eq!(table.memory[table.pages[1] as usize * 8 + 6..][..2], [0, 0]);
        cache.release(&mut one);
        cache.release(&mut three);
        assert_eq!(free(&cache), 10);
    }

    #[test]
    fn a_fork_of_a_full_page_copies_nothing() {
        let mut cache = cache(None, 16, 2);
        let mut one = Sequence::default();
        step(&mut cache, &mut one, 4).unwrap();
        let mut two = cache.fork(&one);
        step(&mut cache, &mut two, 1).unwrap();
        assert_eq!(one.tables[0].pages[0], two.tables[0].pages[0]);
        assert_eq!(free(&cache), 6);
    }

    #[test]
    fn a_fork_within_a_window_gives_back_its_own() {
        let mut cache = cache(Some(5), 1000, 2);
        let pages = free(&cache);
        let mut one = Sequence::default();
        step(&mut cache, &mut one, 3).unwrap();
        step(&mut cache, &mut one, 3).unwrap();
        let mut two = cache.fork(&one);
        for _ in 0..20 {
            step(&mut cache, &mut two, 3).unwrap();
            assert!(holds(&mut cache, &one, 5) && holds(&mut cache, &two, 5));
        }
        cache.release(&mut one);
        cache.release(&mut two);
        assert_eq!(free(&cache), pages);
    }

    #[test]
    fn a_page_used_before_is_zero_again() {
        let mut cache = cache(None, 8, 1);
        let mut sequence = Sequence::default();
        step(&mut cache, &mut sequence, 8).unwrap();
        cache.release(&mut sequence);
        cache.reserve(&mut sequence, 8).unwrap();
        assert!(cache.tables(&sequence)[0].memory.iter().all(|&byte| byte == 0));
    }

    #[test]
    fn a_pool_for_a_long_context_takes_no_memory_yet() {
        let group = CacheGroup { window: None, page_positions: 64, page_bytes: 1 << 24 };
        let mut cache = Cache::new(&[group], 1 << 17, 1, 512).unwrap(); // 32 GiB
        let mut sequence = Sequence::default();
        cache.reserve(&mut sequence, 10).unwrap();
        assert_eq!(cache.tables(&sequence)[0].memory.len(), 1 << 35);
        let error =
            Cache::new(&[CacheGroup { page_bytes: usize::MAX / 4, ..group_of(64) }], 1 << 17, 1, 1).unwrap_err();
        assert!(error.to_string().contains("bytes of memory for the cache"), "{error}");
    }

    fn group_of(page_positions: usize) -> CacheGroup {
        CacheGroup { window: None, page_positions, page_bytes: 8 }
    }
}
