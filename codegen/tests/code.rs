//! Compiled code as a thing to own: kept texts, refusals, use from several threads.

mod support;

use einfuse_codegen::loops::{Address, Buffer, Elem, Expr, Kernel, Share, Stmt, Ty, Var, parse};
use einfuse_codegen::lower::{Code, Lowering, Target, compile};
use support::host;

fn squares() -> Kernel {
    let store = Stmt::Store {
        elem: Elem::I32,
        at: Address::new(Buffer::Arena(0), Var(0)),
        value: Expr::from(Var(0)) * Expr::from(Var(0)),
    };
    let body = vec![Stmt::Parallel { var: Var(0), count: 100.into(), share: Share::Cyclic, body: vec![store] }];
    Kernel { name: "squares".into(), vars: vec![Ty::Int], scratch: 0, body }
}

#[test]
fn workers_share_code() {
    let code = compile(&[squares()], host(), &Lowering::default()).unwrap();
    let mut arena = vec![0i32; 100];
    let frame = [0, 0, arena.as_mut_ptr() as u64, 0];
    std::thread::scope(|scope| {
        for worker in 0..3 {
            let (code, frame) = (&code, &frame);
            scope.spawn(move || {
                // SAFETY: the arena has room for what the kernel stores, and each worker stores elsewhere.
                unsafe { code.call(0, frame.as_ptr(), std::ptr::null(), worker, 3, std::ptr::null_mut()) }
            });
        }
    });
    assert!(arena.iter().enumerate().all(|(i, x)| *x == (i * i) as i32), "{arena:?}");
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
    unsafe { code.call(0, std::ptr::null(), std::ptr::null(), 0, 1, std::ptr::null_mut()) }
}
