//! The seccomp filter: which system calls, made from where, are trapped.

use std::fs;
use std::io;

const TRAPPED: [i64; 28] = [
    libc::SYS_open,
    libc::SYS_openat,
    libc::SYS_creat,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_sync_file_range,
    libc::SYS_truncate,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_unlink,
    libc::SYS_unlinkat,
    libc::SYS_mkdir,
    libc::SYS_mkdirat,
    libc::SYS_rmdir,
    libc::SYS_link,
    libc::SYS_linkat,
    libc::SYS_symlink,
    libc::SYS_symlinkat,
    libc::SYS_copy_file_range,
    libc::SYS_sendfile,
];

// From <linux/fs.h>.
const FICLONE: u32 = 0x4004_9409;
const FICLONERANGE: u32 = 0x4020_940d;

// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const INSTRUCTION_LOW: u32 = 8;
const INSTRUCTION_HIGH: u32 = 12;
const SECOND_ARGUMENT: u32 = 24;
const X86_64: u32 = 0xc000_003e;

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

/// Installs it for all threads that there are and will be.
pub fn install() -> io::Result<()> {
    let mut program = program(text_of_libc()?)?;
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the program lives as long as the kernel reads it.
    let result = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_TSYNC,
            &raw const filter,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Where libc's instructions are.
fn text_of_libc() -> io::Result<(u64, u64)> {
    let inside = libc::getpid as *const () as u64;
    let maps = fs::read_to_string("/proc/self/maps")?;
    maps.lines()
        .filter_map(|line| {
            let (start, rest) = line.split_once('-')?;
            let (end, _) = rest.split_once(' ')?;
            Some((u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?))
        })
        .find(|(start, end)| (*start..*end).contains(&inside))
        .ok_or_else(|| io::Error::other("libc is not in /proc/self/maps"))
}

fn program((start, end): (u64, u64)) -> io::Result<Vec<libc::sock_filter>> {
    if start >> 32 != end >> 32 {
        return Err(io::Error::other("libc is mapped across a boundary of 4 GB; try again"));
    }
    let allow = [statement(RETURN, libc::SECCOMP_RET_ALLOW)];
    let trap = statement(RETURN, libc::SECCOMP_RET_TRAP);
    let mut program = vec![
        statement(LOAD, ARCHITECTURE),
        jump(EQUAL, X86_64, 1, 0),
        allow[0],
        statement(LOAD, INSTRUCTION_HIGH),
        jump(EQUAL, (start >> 32) as u32, 1, 0),
        allow[0],
        statement(LOAD, INSTRUCTION_LOW),
        jump(AT_LEAST, start as u32, 1, 0),
        allow[0],
        jump(AT_LEAST, end as u32, 0, 1),
        allow[0],
        statement(LOAD, NUMBER),
    ];
    for number in TRAPPED {
        program.extend([jump(EQUAL, number as u32, 0, 1), trap]);
    }
    program.extend([jump(EQUAL, libc::SYS_ioctl as u32, 1, 0), allow[0], statement(LOAD, SECOND_ARGUMENT)]);
    for request in [FICLONE, FICLONERANGE] {
        program.extend([jump(EQUAL, request, 0, 1), trap]);
    }
    program.extend(allow);
    Ok(program)
}

const fn statement(code: u16, operand: u32) -> libc::sock_filter {
    jump(code, operand, 0, 0)
}

const fn jump(code: u16, operand: u32, if_true: u8, if_false: u8) -> libc::sock_filter {
    libc::sock_filter { code, jt: if_true, jf: if_false, k: operand }
}
