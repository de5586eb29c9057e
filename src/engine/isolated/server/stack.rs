//! The stack of the threads that call Chroma, whose binding recurses for each part of a filter.

use std::panic::resume_unwind;
use std::thread;

use crate::chroma::Method;
use crate::engine::isolated::protocol::values::name_of;

/// As much as the main thread of an app has, in which stock Chroma is called.
pub const STACK: usize = 8 << 20;

/// How much stack a byte of a filter can take: a part of `$or` has at least ten bytes, and takes about a kilobyte (measured).
const STACK_A_BYTE: usize = 512;

/// This is only address space: stack that is not used takes no memory.
const LARGEST_STACK: usize = 4 << 30;

/// Executes a call; in a thread of its own where its filter may need more stack than this thread has. Where the system has
/// no thread left, it is executed here.
pub fn call<T: Send>(body: Vec<u8>, call: impl Fn(Vec<u8>) -> T + Sync) -> T {
    let needed = body.len().saturating_mul(STACK_A_BYTE).min(LARGEST_STACK);
    if needed <= STACK || !name_of(&body).is_some_and(|name| Method::named(name).is_filtered()) {
        return call(body);
    }
    let mut waiting = Some(body);
    let answer = thread::scope(|scope| {
        let make = || waiting.take().map(&call);
        let spawned = thread::Builder::new().name("call".into()).stack_size(needed).spawn_scoped(scope, make);
        spawned.ok().and_then(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)))
    });
    answer.unwrap_or_else(|| call(waiting.take().expect("no thread has taken it")))
}
