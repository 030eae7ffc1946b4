//! Zeroed memory straight from the kernel, in huge pages where it gives them.
//!
//! A flow table of millions of flows is read at random: with pages of 4 KiB nearly every packet would also miss the
//! processor's page cache (TLB), and each miss costs a walk through tables that are themselves not in the cache.
//! It is a process's own, or that of a file or of a map of the kernel's: then it outlives the process. The kernel has
//! its maps in pages of 4 KiB. Left out: locking and NUMA placement.
#![allow(unsafe_code, reason = "mmap(2), madvise(2), mincore(2)")]

use std::ops::Range;
use std::os::fd::AsRawFd;
use std::ptr::{self, NonNull};
use std::{fs, io};

use super::bpf;
use super::cells::{Cell64, SharedLine};

/// A huge page of this processor family. On others the advice is only less exact.
const HUGE_BYTES: usize = 2 << 20;
/// The smallest page of any processor family: with larger ones some are asked about, or written to, more than once.
const PAGE_BYTES: usize = 4096;
const LINE_BYTES: usize = size_of::<SharedLine>();
/// Miri, which looks for undefined behaviour, knows neither this flag nor madvise(2).
const NO_RESERVE: libc::c_int = if cfg!(miri) { 0 } else { libc::MAP_NORESERVE };

/// Memory in cache lines: private and all zero at first, or a file's.
pub struct Memory {
    /// What was mapped.
    base: NonNull<libc::c_void>,
    mapped_bytes: usize,
    /// The first of the lines that are given out.
    start: NonNull<SharedLine>,
    lines: usize,
    kind: Kind,
}

/// Whose memory it is.
enum Kind {
    /// The process's own.
    Private,
    File(fs::File),
    /// The kernel's.
    Map,
}

// SAFETY: the memory belongs to no thread, and of this process it is this value's alone. It is not `Sync`, as its lines
// are not.
unsafe impl Send for Memory {}

impl Memory {
    /// Map `lines` cache lines, at least one. From the size of a huge page on, they start at the bounds of one, and
    /// huge pages are asked for.
    ///
    /// # Errors
    /// As mmap(2).
    pub fn new(lines: usize) -> io::Result<Self> {
        let bytes = lines
            .max(1)
            .checked_mul(LINE_BYTES)
            .ok_or(io::ErrorKind::OutOfMemory)?;
        let is_huge = bytes >= HUGE_BYTES;
        let spare = if is_huge { HUGE_BYTES } else { 0 };
        let mapped_bytes = bytes.checked_add(spare).ok_or(io::ErrorKind::OutOfMemory)?;
        let base = map(mapped_bytes)?;
        let offset = if is_huge {
            base.as_ptr().align_offset(HUGE_BYTES)
        } else {
            0
        };
        // SAFETY: `offset` is below `HUGE_BYTES`, the spare bytes of the mapping.
        let start = unsafe { base.byte_add(offset) };
        if is_huge && !cfg!(miri) {
            // Only advice: without huge pages everything works, more slowly.
            // SAFETY: the range lies in the mapping just made.
            unsafe { libc::madvise(start.as_ptr(), bytes, libc::MADV_HUGEPAGE) };
        }
        Ok(Self {
            base,
            mapped_bytes,
            start: start.cast(),
            lines,
            kind: Kind::Private,
        })
    }

    /// Map a file from its beginning, made as long as it takes: what is written there outlives the process. Nobody
    /// else may shorten the file meanwhile: touching what is gone ends the process (SIGBUS).
    ///
    /// # Errors
    /// As ftruncate(2) and mmap(2).
    pub fn of_file(file: &fs::File, lines: usize) -> io::Result<Self> {
        let mut memory = Self::new(lines)?;
        let bytes = size_of_val(memory.lines());
        memory.kind = Kind::File(file.try_clone()?);
        file.set_len(bytes as u64)?;
        let (rights, kind) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_FIXED,
        );
        // SAFETY: the range is ours and mapped, at the bounds of a page, and nobody has a reference into it yet; the
        // mapping that takes its place is as long, and goes with it.
        let placed = unsafe {
            libc::mmap(
                memory.start.as_ptr().cast(),
                bytes,
                rights,
                kind,
                file.as_raw_fd(),
                0,
            )
        };
        if placed == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        if bytes >= HUGE_BYTES {
            // Only advice, as above; a file system in memory may follow it.
            // SAFETY: the range lies in the mapping just made.
            unsafe { libc::madvise(placed, bytes, libc::MADV_HUGEPAGE) };
        }
        Ok(memory)
    }

    /// Map an array of the kernel's, which its programs can read and write: a value per line. All of its memory is
    /// there already.
    ///
    /// # Errors
    /// `InvalidInput` when it has another size; as mmap(2).
    pub fn of_map(map: &fs::File, lines: usize) -> io::Result<Self> {
        let bytes = lines.saturating_mul(LINE_BYTES);
        if bpf::mappable_len(map, LINE_BYTES as u32)? != bytes as u64 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let rights = libc::PROT_READ | libc::PROT_WRITE;
        let fd = map.as_raw_fd();
        // SAFETY: a new mapping at a place of the kernel's choice touches nothing that exists.
        let base = unsafe { libc::mmap(ptr::null_mut(), bytes, rights, libc::MAP_SHARED, fd, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self {
            base,
            mapped_bytes: bytes,
            start: base.cast(),
            lines,
            kind: Kind::Map,
        })
    }

    /// Map such an array as long as it is.
    ///
    /// # Errors
    /// As [`Self::of_map`].
    pub fn of_whole_map(map: &fs::File) -> io::Result<Self> {
        let bytes = bpf::mappable_len(map, LINE_BYTES as u32)?;
        let lines = usize::try_from(bytes).map_err(|_| io::ErrorKind::OutOfMemory)? / LINE_BYTES;
        Self::of_map(map, lines)
    }

    /// All lines.
    #[inline(always)]
    #[must_use]
    pub fn lines(&self) -> &[SharedLine] {
        // SAFETY: `start` is aligned to a page, and `lines` lines from it on are mapped, every bit pattern of which is
        // a value, for as long as `self` lives; what others write meanwhile a shared line allows.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.lines) }
    }

    /// Have every page now, so that no packet waits for one, and lack of memory shows at the start instead of in
    /// service.
    ///
    /// # Errors
    /// `OutOfMemory` when the system says that there is less; else as madvise(2).
    pub fn populate(&self) -> io::Result<()> {
        let bytes = size_of_val(self.lines());
        let missing = (bytes as u64).saturating_sub(self.resident_bytes(0..self.lines)?);
        if missing == 0 {
            return Ok(());
        }
        require_available(missing)?;
        // SAFETY: the range is ours and mapped; its contents stay as they are.
        let result =
            unsafe { libc::madvise(self.start.as_ptr().cast(), bytes, libc::MADV_POPULATE_WRITE) };
        if result == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EINVAL) {
            return Err(error);
        }
        // A kernel before 5.14: writing does the same.
        for line in self.lines().iter().step_by(PAGE_BYTES / LINE_BYTES) {
            let [first, ..] = line.view::<[Cell64; 8]>();
            first.set(first.get());
        }
        Ok(())
    }

    /// Bytes of some of its lines that have a page by now.
    ///
    /// # Errors
    /// As mincore(2): `InvalidInput` unless the first line begins a page. As lseek(2) for a file.
    ///
    /// # Panics
    /// There are fewer lines.
    pub fn resident_bytes(&self, lines: Range<usize>) -> io::Result<u64> {
        let byte = |line: usize| (line * LINE_BYTES) as u64;
        match &self.kind {
            Kind::Private => {}
            // mincore(2) says "all" of a file that this user may not open for writing.
            Kind::File(file) => return data_bytes(file, byte(lines.start)..byte(lines.end)),
            Kind::Map => return Ok(byte(lines.len())),
        }
        let lines = &self.lines()[lines];
        let bytes = size_of_val(lines);
        let mut pages = vec![0u8; bytes.div_ceil(PAGE_BYTES)];
        // SAFETY: the range is mapped, and `pages` has a byte for each of its pages. Nothing is written there.
        let result = unsafe {
            libc::mincore(
                lines.as_ptr().cast_mut().cast(),
                bytes,
                pages.as_mut_ptr().cast(),
            )
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        let resident = pages.iter().filter(|&&page| page & 1 != 0).count();
        Ok((resident * PAGE_BYTES).min(bytes) as u64)
    }
}

/// Bytes of a range of a file that are no hole.
fn data_bytes(file: &fs::File, range: Range<u64>) -> io::Result<u64> {
    let seek = |at: u64, whence: i32| {
        let at = libc::off_t::try_from(at).map_err(io::Error::other)?;
        // SAFETY: no pointers.
        let found = unsafe { libc::lseek(file.as_raw_fd(), at, whence) };
        if let Ok(found) = u64::try_from(found) {
            return Ok(found.min(range.end));
        }
        let error = io::Error::last_os_error();
        // No data from there on.
        let is_end = error.raw_os_error() == Some(libc::ENXIO);
        if is_end { Ok(range.end) } else { Err(error) }
    };
    let (mut at, mut bytes) = (range.start, 0);
    while at < range.end {
        let data = seek(at, libc::SEEK_DATA)?;
        if data == range.end {
            break;
        }
        at = seek(data, libc::SEEK_HOLE)?;
        bytes += at - data;
    }
    Ok(bytes)
}

/// Have the kernel make a map for [`Memory::of_map`].
///
/// # Errors
/// `OutOfMemory` when the system says that there is less; else as bpf(2).
pub fn create_map(lines: usize) -> io::Result<fs::File> {
    let entries = u32::try_from(lines).map_err(|_| io::ErrorKind::OutOfMemory)?;
    require_available((lines * LINE_BYTES) as u64)?;
    bpf::create_mappable(LINE_BYTES as u32, entries)
}

fn require_available(bytes: u64) -> io::Result<()> {
    if let Some(available) = available_bytes().filter(|&available| available < bytes) {
        let text = format!("{available} bytes are available");
        return Err(io::Error::new(io::ErrorKind::OutOfMemory, text));
    }
    Ok(())
}

/// What the system could still give: to any process, and to our control group, as far as either is told.
fn available_bytes() -> Option<u64> {
    let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let group = number("/sys/fs/cgroup/memory.max")
        .zip(number("/sys/fs/cgroup/memory.current"))
        .map(|(most, used)| most.saturating_sub(used));
    let system = fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("MemAvailable:"))?;
        let kibibytes = line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?;
        Some(kibibytes * 1024)
    });
    group.into_iter().chain(system).min()
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, whole, and no reference into it outlives `self`.
        unsafe { libc::munmap(self.base.as_ptr(), self.mapped_bytes) };
    }
}

fn map(bytes: usize) -> io::Result<NonNull<libc::c_void>> {
    let (rights, kind) = (
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | NO_RESERVE,
    );
    // SAFETY: a new anonymous mapping at a place of the kernel's choice touches nothing that exists.
    let base = unsafe { libc::mmap(ptr::null_mut(), bytes, rights, kind, -1, 0) };
    if base == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(base).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_zero(line: &SharedLine) -> bool {
        line.view::<[Cell64; 8]>()
            .iter()
            .all(|word| word.get() == 0)
    }

    fn last_word(memory: &Memory) -> &Cell64 {
        let line = memory.lines().last().expect("it has lines");
        &line.view::<[Cell64; 8]>()[7]
    }

    #[test]
    fn memory_new_is_zero_and_writable_to_its_end() {
        let huge = HUGE_BYTES / LINE_BYTES;
        for lines in [1, 63, 65, huge, huge + 1] {
            let memory = Memory::new(lines).unwrap();
            assert_eq!(memory.lines().len(), lines);
            assert!(memory.lines().iter().all(is_zero));
            last_word(&memory).set(7);
            assert_eq!(last_word(&memory).get(), 7);
        }
    }

    #[test]
    fn memory_of_a_huge_page_or_more_starts_at_its_bounds() {
        let memory = Memory::new(HUGE_BYTES / LINE_BYTES).unwrap();
        assert_eq!(memory.lines().as_ptr().align_offset(HUGE_BYTES), 0);
    }

    /// Rule 8.17, full table: what is promised is there, and what was written before stays.
    #[test]
    fn populate_every_page_is_resident_and_keeps_its_contents() {
        let lines = (HUGE_BYTES + 3 * PAGE_BYTES) / LINE_BYTES;
        let memory = Memory::new(lines).unwrap();
        last_word(&memory).set(7);
        assert!(
            memory.resident_bytes(0..memory.lines).unwrap() < size_of_val(memory.lines()) as u64
        );
        memory.populate().unwrap();
        let bytes = size_of_val(memory.lines()) as u64;
        assert_eq!(memory.resident_bytes(0..memory.lines).unwrap(), bytes);
        assert_eq!(last_word(&memory).get(), 7);
    }

    #[test]
    fn populate_more_than_the_system_has_is_refused_before_it_is_taken() {
        let available = available_bytes().expect("Linux tells");
        let lines = usize::try_from(available).unwrap() * 2 / LINE_BYTES;
        let memory = Memory::new(lines).unwrap();
        let error = memory.populate().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::OutOfMemory);
        assert_eq!(memory.resident_bytes(0..memory.lines).unwrap(), 0);
    }

    #[test]
    fn memory_of_a_file_is_what_the_file_keeps() {
        for lines in [3, HUGE_BYTES / LINE_BYTES + 1] {
            let file = tempfile().unwrap();
            let memory = Memory::of_file(&file, lines).unwrap();
            assert!(memory.lines().iter().all(is_zero));
            last_word(&memory).set(7);
            let bytes = size_of_val(memory.lines()) as u64;
            if lines > 3 {
                assert!(memory.resident_bytes(0..lines).unwrap() < bytes);
            }
            memory.populate().unwrap();
            assert_eq!(memory.resident_bytes(0..lines).unwrap(), bytes);
            drop(memory);
            let memory = Memory::of_file(&file, lines).unwrap();
            assert_eq!(last_word(&memory).get(), 7);
            assert_eq!(file.metadata().unwrap().len(), (lines * LINE_BYTES) as u64);
        }
    }

    #[test]
    fn memory_of_a_map_is_what_the_map_keeps() {
        let lines = PAGE_BYTES / LINE_BYTES + 1;
        let Ok(map) = create_map(lines) else {
            assert!(bpf::create_mappable(64, 1).is_err());
            return;
        };
        let memory = Memory::of_map(&map, lines).unwrap();
        assert!(memory.lines().iter().all(is_zero));
        last_word(&memory).set(7);
        memory.populate().unwrap();
        let bytes = size_of_val(memory.lines()) as u64;
        assert_eq!(memory.resident_bytes(0..lines).unwrap(), bytes);
        drop(memory);
        let memory = Memory::of_map(&map, lines).unwrap();
        assert_eq!(last_word(&memory).get(), 7);
        assert!(Memory::of_map(&map, lines - 1).is_err());
    }

    /// A file without a name, in memory where that is possible.
    fn tempfile() -> io::Result<fs::File> {
        let path = std::env::temp_dir().join(format!(
            "flowlb-memory-{}-{:?}",
            std::process::id(),
            std::thread::current().id()
        ));
        let file = fs::File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)?;
        fs::remove_file(path)?;
        Ok(file)
    }

    #[test]
    fn memory_beyond_the_address_space_is_refused() {
        assert!(Memory::new(usize::MAX / LINE_BYTES).is_err());
        assert!(Memory::new(usize::MAX).is_err());
    }
}
