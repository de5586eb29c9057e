//! System calls that the filter does not see: their instruction is not in libc. They leave `errno` alone.

use core::arch::asm;

/// Performs a system call; returns what the kernel does, errors as their negated numbers.
///
/// # Safety
///
/// As for the system call.
#[inline(never)]
pub unsafe fn perform(number: i64, arguments: [u64; 6]) -> i64 {
    let result: i64;
    // SAFETY: the caller's; the instruction overwrites `rcx` and `r11` besides.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") arguments[0],
            in("rsi") arguments[1],
            in("rdx") arguments[2],
            in("r10") arguments[3],
            in("r8") arguments[4],
            in("r9") arguments[5],
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result
}
