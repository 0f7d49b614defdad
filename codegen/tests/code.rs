//! Compiled code as a thing to own: kept texts, refusals, use from several threads.

mod support;

use einfuse_codegen::format::Elem;

use einfuse_codegen::loops::{Address, Arg, Buffer, Expr, Kernel, Share, Stmt, Ty, Var, parse};
use einfuse_codegen::lower::{Code, Left, Lowering, Target, compile};
use support::host;

fn squares() -> Kernel {
    let store = Stmt::Store {
        elem: Elem::I32,
        at: Address::new(Buffer::Arena(0), Var(0)),
        value: Expr::from(Var(0)) * Expr::from(Var(0)),
    };
    let body = vec![Stmt::Parallel { var: Var(0), count: 100.into(), share: Share::Blocks, body: vec![store] }];
    Kernel { name: "squares".into(), vars: vec![Ty::Int], scratch: 0, body }
}

#[test]
fn workers_share_code() {
    let code = compile(&[squares()], host(), &Lowering::default()).unwrap();
    let mut arena = vec![0i32; 100];
    let frame = [0, 0, arena.as_mut_ptr() as u64, 0];
    let left = [const { Left::new(0) }; 3];
    std::thread::scope(|scope| {
        for worker in 0..3 {
            let (code, frame, left) = (&code, &frame, &left);
            scope.spawn(move || {
                // SAFETY: the arena has room for what the kernel stores, and each worker stores elsewhere.
                unsafe { code.call(0, frame.as_ptr(), std::ptr::null(), worker, left, std::ptr::null_mut()) }
            });
        }
    });
    assert!(arena.iter().enumerate().all(|(i, x)| *x == (i * i) as i32), "{arena:?}");
}

/// Counts, in a balanced loop of as many rounds as there are tokens, how often each of its iterations is done.
fn counts(turns: usize) -> Code {
    let element = Expr::Load { elem: Elem::I32, at: Address::new(Buffer::Arena(0), Var(0)).into(), lanes: 1 };
    let store =
        Stmt::Store { elem: Elem::I32, at: Address::new(Buffer::Arena(0), Var(0)), value: element + Expr::Int(1) };
    let count = Expr::from(Arg::Tokens) * turns;
    let body = vec![Stmt::Parallel { var: Var(0), count, share: Share::Balanced(turns), body: vec![store] }];
    let kernel = Kernel { name: "counts".into(), vars: vec![Ty::Int], scratch: 0, body };
    compile(&[kernel], host(), &Lowering::default()).unwrap()
}

#[test]
fn every_iteration_of_a_balanced_loop_is_done_once() {
    for (workers, turns) in [(1, 1), (1, 7), (2, 1), (2, 5), (3, 2), (3, 10), (5, 16)] {
        let code = counts(turns);
        for rounds in [0, 1, 3, 1000] {
            let mut arena = vec![0i32; rounds * turns];
            let frame = [rounds as u64, 0, arena.as_mut_ptr() as u64, 0];
            let left: Vec<Left> = (0..workers).map(|_| Left::default()).collect();
            let meet = std::sync::Barrier::new(workers);
            std::thread::scope(|scope| {
                for worker in 0..workers {
                    let (code, frame, left, meet) = (&code, &frame, &left[..], &meet);
                    scope.spawn(move || {
                        for _ in 0..20 {
                            // SAFETY: the arena has an element for each iteration, and each is one worker's.
                            unsafe {
                                code.call(0, frame.as_ptr(), std::ptr::null(), worker, left, std::ptr::null_mut());
                            }
                            meet.wait();
                        }
                    });
                }
            });
            assert!(arena.iter().all(|n| *n == 20), "{workers} workers, {turns} turns: {arena:?}");
        }
    }
}

#[test]
fn a_worker_takes_what_another_has_left() {
    let code = counts(10);
    let call = |left: &[Left; 3]| {
        let mut arena = vec![0i32; 40];
        let frame = [4, 0, arena.as_mut_ptr() as u64, 0];
        // SAFETY: the arena has an element for each iteration.
        unsafe { code.call(0, frame.as_ptr(), std::ptr::null(), 1, left, std::ptr::null_mut()) };
        arena
    };
    // Worker 1 of 3 has the iterations 3, 4 and 5 of each ten, worker 0 those before.
    let round = |own: i32, others: i32| [others, others, others, own, own, own, 0, 0, 0, 0];
    assert_eq!(call(&[0, 0, 0].map(Left::new)), round(1, 0).repeat(4));
    assert_eq!(call(&[12, 0, 0].map(Left::new)), round(1, 1).repeat(4));
    assert_eq!(call(&[0, 0, 16].map(Left::new)), [0, 0, 0, 1, 1, 1, 1, 1, 1, 1].repeat(4));
}

#[test]
fn code_moves_between_threads() {
    fn sendable<T: Send + Sync>() {}
    sendable::<Code>();
}

#[test]
fn texts_are_kept_when_asked_for() {
    let kernels = [squares(), squares()];
    let code = compile(&kernels, host(), &Lowering { verify: true, keep_text: true }).unwrap();
    assert_eq!(code.len(), 2);
    assert!(code.clif(1).unwrap().contains("imul"));
    assert!(!code.asm(1).unwrap().is_empty());
    assert!(code.bytes(0) > 0 && code.instructions(0) > 0);
    assert_eq!((code.clif(2), code.bytes(2)), (None, 0));
    let code = compile(&kernels, host(), &Lowering { verify: true, keep_text: false }).unwrap();
    assert_eq!((code.clif(0), code.asm(0)), (None, None));
}

#[test]
fn what_cannot_be_compiled_is_refused() {
    let error = |kernels: &[Kernel], target: &Target| match compile(kernels, target, &Lowering::default()) {
        Ok(_) => panic!("compiled"),
        Err(error) => error.to_string(),
    };
    let foreign = Target::named("aarch64").unwrap();
    assert_eq!(error(&[squares()], &foreign), "target: code for aarch64 is to be read, not run");
    let Err(unknown) = Target::named("z80") else { panic!("a target") };
    assert_eq!(unknown.to_string(), "target: `z80` is not `x86_64` or `aarch64`");
    let wrong = parse("kernel wrong scratch 0 { f32 arena(0)[1.5] = 1.0; }").unwrap();
    assert_eq!(error(&[squares(), wrong], host()), "kernel `wrong`: an offset is float, not int");
}

#[test]
fn a_kernel_that_is_not_there_does_nothing() {
    let code = compile(&[], host(), &Lowering::default()).unwrap();
    assert!(code.is_empty());
    // SAFETY: nothing is run.
    unsafe { code.call(0, std::ptr::null(), std::ptr::null(), 0, &[Left::default()], std::ptr::null_mut()) }
}
