//! Small programs that the kernel runs for us, and memory that they and we share: bpf(2).
#![allow(unsafe_code, reason = "system calls")]

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::ptr;

use libc::c_int;

use super::check::check;

const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_PROG_TEST_RUN: libc::c_long = 10;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_MAP_TYPE_ARRAY: u32 = 2;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_F_TEST_XDP_LIVE_FRAMES: u32 = 2;
const BPF_F_MMAPABLE: u32 = 1 << 10;

/// What we know of `union bpf_attr` (linux/bpf.h), for loading a program.
#[repr(C)]
#[derive(Default)]
struct ProgramLoad {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

/// The same, for running one.
#[repr(C)]
#[derive(Default)]
struct ProgramRun {
    program: u32,
    answer: u32,
    data_len: u32,
    data_out_len: u32,
    data: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_len: u32,
    context_out_len: u32,
    context: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
    batch: u32,
    padding: u32,
}

/// The same, for making a map.
#[repr(C)]
#[derive(Default)]
struct MapCreate {
    kind: u32,
    key_len: u32,
    value_len: u32,
    entries: u32,
    flags: u32,
}

/// The same, for reading a value of one.
#[repr(C)]
#[derive(Default)]
struct MapLookup {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// The same, for a path that a map is pinned at.
#[repr(C)]
#[derive(Default)]
struct Pinned {
    path: u64,
    map: u32,
    flags: u32,
}

/// The same, for asking about a map.
#[repr(C)]
#[derive(Default)]
struct AskInfo {
    map: u32,
    info_len: u32,
    info: u64,
}

/// The beginning of `struct bpf_map_info`.
#[repr(C)]
#[derive(Default)]
struct MapInfo {
    kind: u32,
    id: u32,
    key_len: u32,
    value_len: u32,
    entries: u32,
    flags: u32,
}

/// Have the kernel do something. Returns its answer.
///
/// # Safety
/// The attributes are those of the command, and what they point to may be read and written as that command does.
unsafe fn call<A>(command: libc::c_long, attributes: &mut A) -> io::Result<RawFd> {
    // SAFETY: the attributes are borrowed for the call with their true length; the caller vouches for the rest.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            ptr::from_mut(attributes),
            size_of::<A>(),
        )
    };
    check(answer as c_int)?;
    Ok(answer as RawFd)
}

/// Have the kernel make or open something.
///
/// # Safety
/// As [`call`], of a command that gives a descriptor.
unsafe fn give<A>(command: libc::c_long, attributes: &mut A) -> io::Result<File> {
    // SAFETY: as the caller's.
    let fd = unsafe { call(command, attributes) }?;
    // SAFETY: the kernel just gave this descriptor to us; nothing else knows it.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// Make an array of one value of two words, both 0, that programs share with us. It ends with its descriptor.
///
/// # Errors
/// As bpf(2).
pub fn create_two_words() -> io::Result<File> {
    create_array(size_of::<[u64; 2]>() as u32, 1, 0)
}

/// Make an array of values of `value_len` bytes, all 0, that can be mapped (Linux 5.5). It ends with its descriptor,
/// unless it is pinned.
///
/// # Errors
/// As bpf(2): `EPERM` without the capability, `ENOMEM`.
pub fn create_mappable(value_len: u32, entries: u32) -> io::Result<File> {
    create_array(value_len, entries, BPF_F_MMAPABLE)
}

fn create_array(value_len: u32, entries: u32, flags: u32) -> io::Result<File> {
    let mut create = MapCreate {
        kind: BPF_MAP_TYPE_ARRAY,
        key_len: size_of::<u32>() as u32,
        value_len,
        entries,
        flags,
    };
    // SAFETY: the attributes name no memory.
    unsafe { give(BPF_MAP_CREATE, &mut create) }
}

/// Have a map outlive its descriptors: until its path, in a BPF file system, is removed.
///
/// # Errors
/// As bpf(2): `EEXIST`, `EPERM` outside of such a file system.
pub fn pin(map: &File, path: &CStr) -> io::Result<()> {
    let mut pinned = Pinned {
        path: path.as_ptr() as u64,
        map: map.as_raw_fd().unsigned_abs(),
        flags: 0,
    };
    // SAFETY: the path is a string with its end.
    unsafe { call(BPF_OBJ_PIN, &mut pinned) }.map(|_| ())
}

/// Open what is pinned at a path.
///
/// # Errors
/// As bpf(2): `ENOENT`, `EPERM` without the capability.
pub fn open_pinned(path: &CStr) -> io::Result<File> {
    let mut pinned = Pinned {
        path: path.as_ptr() as u64,
        ..Pinned::default()
    };
    // SAFETY: the path is a string with its end.
    unsafe { give(BPF_OBJ_GET, &mut pinned) }
}

/// Bytes of a mappable array of values of `value_len` bytes.
///
/// # Errors
/// `InvalidInput` for any other map; as bpf(2) for what is none.
pub fn mappable_len(map: &File, value_len: u32) -> io::Result<u64> {
    let mut info = MapInfo::default();
    let mut ask = AskInfo {
        map: map.as_raw_fd().unsigned_abs(),
        info_len: size_of::<MapInfo>() as u32,
        info: (&raw mut info) as u64,
    };
    // SAFETY: the kernel writes at most `info_len` bytes, as many as there are.
    unsafe { call(BPF_OBJ_GET_INFO_BY_FD, &mut ask) }?;
    let is_one = info.kind == BPF_MAP_TYPE_ARRAY
        && info.value_len == value_len
        && info.flags & BPF_F_MMAPABLE != 0;
    if !is_one {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Ok(u64::from(info.entries) * u64::from(value_len))
}

/// Read the two words of a map that [`create_two_words`] made.
///
/// # Errors
/// As bpf(2).
pub fn read_two_words(map: &File) -> io::Result<[u64; 2]> {
    let (key, mut value) = (0u32, [0u64; 2]);
    let mut lookup = MapLookup {
        map: map.as_raw_fd().unsigned_abs(),
        key: (&raw const key) as u64,
        value: (&raw mut value) as u64,
        ..MapLookup::default()
    };
    // SAFETY: key and value live in this frame, and the kernel writes as many bytes as the map's values have:
    // two words.
    unsafe { call(BPF_MAP_LOOKUP_ELEM, &mut lookup) }.map(|_| value)
}

/// Load an XDP program. It ends with its descriptor.
///
/// # Errors
/// As bpf(2): `EPERM` without the capabilities, `EINVAL` or `EACCES` when the verifier refuses it.
pub fn load_xdp(instructions: &[u64]) -> io::Result<File> {
    let mut load = ProgramLoad {
        kind: BPF_PROG_TYPE_XDP,
        instruction_count: instructions.len() as u32,
        instructions: instructions.as_ptr() as u64,
        license: c"MIT".as_ptr() as u64,
        ..ProgramLoad::default()
    };
    // SAFETY: the instructions are borrowed for the call with their true number, the license is a string with its end.
    unsafe { give(BPF_PROG_LOAD, &mut load) }
}

/// Run an XDP program on frames that the kernel makes and really sends where the program says.
///
/// # Errors
/// As bpf(2): `EINVAL` before Linux 5.18, `EINTR` on a signal.
pub fn run_xdp_live(program: RawFd, frame: &[u8], repeat: u32) -> io::Result<()> {
    let mut run = ProgramRun {
        program: u32::try_from(program).unwrap_or(u32::MAX),
        data_len: frame.len() as u32,
        data: frame.as_ptr() as u64,
        repeat,
        flags: BPF_F_TEST_XDP_LIVE_FRAMES,
        ..ProgramRun::default()
    };
    // SAFETY: the frame is borrowed for the call with its true length, and only read.
    unsafe { call(BPF_PROG_TEST_RUN, &mut run) }.map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where the kernel lets this user: else it says so, and nothing else is to be seen.
    #[test]
    fn mappable_array_has_the_length_that_was_asked_for() {
        let map = match create_mappable(64, 3) {
            Ok(map) => map,
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::EPERM), "{error}");
                return;
            }
        };
        assert_eq!(mappable_len(&map, 64).unwrap(), 3 * 64);
        assert!(mappable_len(&map, 32).is_err());
        assert!(mappable_len(&create_two_words().unwrap(), 16).is_err());
    }

    #[test]
    fn what_is_no_map_has_no_length() {
        assert!(mappable_len(&File::open("/dev/null").unwrap(), 64).is_err());
        assert!(open_pinned(c"/dev/null").is_err());
    }
}
