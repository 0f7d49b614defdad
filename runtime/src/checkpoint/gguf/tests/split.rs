//! A model in several files, as llama.cpp's `gguf-split` makes them.

use std::path::PathBuf;

use super::*;

/// The files of a model, each with so many of its tensors: all metadata is in the first.
fn split(model: &Writer, sizes: &[usize]) -> Vec<Writer> {
    let mut tensors = model.tensors.iter().cloned();
    let total = model.tensors.len() as i32;
    let part = |(number, &size): (usize, &usize)| {
        let entries = if number == 0 { model.entries.clone() } else { Vec::new() };
        Writer { entries, tensors: tensors.by_ref().take(size).collect() }
            .entry("split.no", Kind::U16, &(number as u16).to_le_bytes())
            .entry("split.count", Kind::U16, &(sizes.len() as u16).to_le_bytes())
            .entry("split.tensors.count", Kind::I32, &total.to_le_bytes())
    };
    sizes.iter().enumerate().map(part).collect()
}

/// A folder with files.
struct Folder(tempfile::TempDir);

impl Folder {
    fn of(files: &[Writer]) -> Folder {
        let folder = Folder(tempfile::tempdir().unwrap());
        for (number, file) in files.iter().enumerate() {
            std::fs::write(folder.path(number, files.len()), file.file()).unwrap();
        }
        folder
    }

    fn path(&self, number: usize, count: usize) -> PathBuf {
        self.0.path().join(format!("m-{:05}-of-{count:05}.gguf", number + 1))
    }

    /// What is said of a file, without the folder's name.
    fn error(&self, number: usize, count: usize) -> String {
        let error = Gguf::open(&self.path(number, count)).unwrap_err().to_string();
        error.replace(&format!("{}/", self.0.path().display()), "")
    }
}

/// All that is read of a file: shapes and numbers by name.
fn read(gguf: &Gguf) -> Vec<(String, Vec<usize>, Vec<f32>)> {
    let mut names: Vec<&String> = gguf.names().collect();
    names.sort();
    let tensor = |name: &String| {
        let found = gguf.tensor(name).unwrap();
        let mut numbers = vec![0.0; found.numbers.len()];
        found.numbers.read(0, &mut numbers);
        (name.clone(), found.shape, numbers)
    };
    names.into_iter().map(tensor).collect()
}

#[test]
fn any_of_the_files_is_the_whole_model() {
    // `gguf-split` may leave the first file without tensors.
    let cases: [(Writer, &[usize]); 4] =
        [(small(), &[1, 2, 1]), (small(), &[0, 4]), (experts(), &[2, 1]), (blocks(), &[6, 0, 9, 3])];
    for (model, sizes) in cases {
        assert_eq!(sizes.iter().sum::<usize>(), model.tensors.len());
        let whole = open(model.file()).unwrap();
        let folder = Folder::of(&split(&model, sizes));
        for number in 0..sizes.len() {
            let gguf = Gguf::open(&folder.path(number, sizes.len())).unwrap();
            assert_eq!(gguf.name, folder.path(0, sizes.len()).display().to_string());
            assert_eq!(read(&gguf), read(&whole));
            assert_eq!(gguf.config().unwrap(), whole.config().unwrap());
            assert_eq!(gguf.tokenizer().unwrap(), whole.tokenizer().unwrap());
            gguf.release();
            assert_eq!(read(&gguf), read(&whole));
        }
        // One file that says so needs no other, whatever its name.
        let alone = split(&model, &[model.tensors.len()]).remove(0);
        assert_eq!(read(&open(alone.file()).unwrap()), read(&whole));
    }
}

#[test]
fn scaling_factors_may_be_in_any_file() {
    let model = small().tensor("rope_freqs.weight", &[8], Dtype::F32, vec![0x40; 32]);
    let folder = Folder::of(&split(&model, &[2, 3]));
    let config = Gguf::open(&folder.path(0, 2)).unwrap().config().unwrap();
    assert_eq!(config, open(model.file()).unwrap().config().unwrap());
    assert!(config.contains_key("rope_scaling"));
}

#[test]
fn files_that_do_not_belong_together_are_named() {
    let with = |mut file: Writer, key: &str, number: u16| {
        file.entries.retain(|(other, _)| other != key);
        file.entry(key, Kind::U16, &number.to_le_bytes())
    };
    let changed = |at: usize, key: &str, number: u16| {
        let mut files = split(&small(), &[2, 1, 1]);
        files[at] = with(files[at].clone(), key, number);
        Folder::of(&files)
    };
    let [first, second] = ["m-00001-of-00003.gguf", "m-00002-of-00003.gguf"];
    let says = |error: String, expected: &str| {
        let byte = error.split("at byte ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap_or_default();
        assert_eq!(error.replace(&format!("at byte {byte}"), "at byte #"), expected);
    };

    let folder = Folder::of(&split(&small(), &[2, 1, 1]));
    std::fs::remove_file(folder.path(1, 3)).unwrap();
    for number in [0, 2] {
        let file = format!("m-0000{}-of-00003.gguf", number + 1);
        let problem = "at byte # says that there are 3 files, but m-00002-of-00003.gguf is missing";
        says(folder.error(number, 3), &format!("{file}: key `split.count` {problem}"));
    }
    let renamed = folder.0.path().join("m.gguf");
    std::fs::rename(folder.path(2, 3), &renamed).unwrap();
    says(
        Gguf::open(&renamed).unwrap_err().to_string(),
        &format!(
            "{}: key `split.no` at byte # is 2 of 3, so that the file's name should end in `-00003-of-00003.gguf`",
            renamed.display()
        ),
    );

    let wants = "wants to be 1, and `split.count` 3, as in m-00001-of-00003.gguf";
    for folder in [changed(1, "split.no", 2), changed(1, "split.count", 2), changed(1, "split.count", 1)] {
        says(folder.error(0, 3), &format!("{second}: key `split.no` at byte # {wants}"));
    }
    says(
        changed(1, "split.no", 3).error(0, 3),
        &format!("{second}: key `split.no` at byte # is 3; there are 3 files, from 0 on"),
    );
    says(
        changed(0, "split.tensors.count", 5).error(1, 3),
        &format!("{first}: key `split.tensors.count` at byte # is 5; the 3 files have 4"),
    );

    let mut files = split(&small(), &[2, 1, 1]);
    files[1] = files[1].clone().tensor("output_norm.weight", &[32], Dtype::F32, vec![0; 128]);
    files[2].tensors.clear();
    says(
        Folder::of(&files).error(0, 3),
        &format!("{second}: tensor `output_norm.weight` is there twice, as model.norm.weight"),
    );
    let mut files = split(&small(), &[2, 1, 1]);
    files[1].tensors[0].1 = vec![2, 31];
    files[1].tensors[0].3.truncate(248);
    says(
        Folder::of(&files).error(0, 3),
        &format!("{second}: tensor `blk.0.attn_q.weight` has 31 rows, which are not 2 equal parts of 2 heads"),
    );

    let folder = Folder::of(&split(&small(), &[2, 1, 1]));
    let file = std::fs::read(folder.path(1, 3)).unwrap();
    std::fs::write(folder.path(1, 3), &file[..file.len() - 1]).unwrap();
    let error = folder.error(0, 3);
    assert!(error.starts_with(&format!("{second}: tensor `blk.0.attn_q.weight` ")) && error.ends_with("truncated?"));
    // A file by itself has nothing beside it.
    let error = open(file).unwrap_err().to_string();
    says(error, "x.gguf: key `split.count` at byte # says that this is one of 3 files");
}
