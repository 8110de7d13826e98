//! What `xtask dist` must know of an ELF file: does it need a loader or shared libraries, and is
//! it stripped. Layout: elf(5).

use std::fmt;

const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;
const SHT_SYMTAB: u32 = 2;
const DT_NULL: u64 = 0;
const DT_NEEDED: u64 = 1;

/// The facts of one ELF file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Elf {
    /// `e_machine`; 62 is x86-64.
    pub machine: u16,
    /// It names a loader (`PT_INTERP`), so it is linked dynamically.
    pub has_interpreter: bool,
    /// How many shared libraries it asks for (`DT_NEEDED`). A static position-independent
    /// executable has a dynamic section too, for its relocations, but needs no library.
    pub needed_libraries: usize,
    /// It still has a symbol table, so it is not stripped.
    pub has_symbols: bool,
}

/// Why a file could not be read as ELF.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ElfError {
    /// It does not start as a little-endian 64-bit ELF file does.
    NotElf64,
    /// A header points outside the file.
    Truncated,
}

impl fmt::Display for ElfError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotElf64 => "not a little-endian 64-bit ELF file",
            Self::Truncated => "an ELF header points outside the file",
        })
    }
}

impl std::error::Error for ElfError {}

/// Reads the headers of an ELF file.
///
/// # Errors
/// When the bytes are not such a file or end too early.
pub fn parse(file: &[u8]) -> Result<Elf, ElfError> {
    if !file.starts_with(b"\x7fELF\x02\x01") {
        return Err(ElfError::NotElf64);
    }
    let mut elf = Elf {
        machine: u16::from_le_bytes(bytes(file, 18)?),
        has_interpreter: false,
        needed_libraries: 0,
        has_symbols: false,
    };
    for header in table(file, 32, 54, 56)? {
        match u32::from_le_bytes(bytes(header, 0)?) {
            PT_INTERP => elf.has_interpreter = true,
            PT_DYNAMIC => {
                let segment = slice(file, word(header, 8)?, word(header, 32)?)?;
                elf.needed_libraries += needed(segment)?;
            }
            _ => {}
        }
    }
    for header in table(file, 40, 58, 60)? {
        elf.has_symbols |= u32::from_le_bytes(bytes(header, 4)?) == SHT_SYMTAB;
    }
    Ok(elf)
}

/// Counts the `DT_NEEDED` entries of a dynamic section.
fn needed(section: &[u8]) -> Result<usize, ElfError> {
    let mut count = 0;
    for entry in section.chunks_exact(16) {
        match word(entry, 0)? {
            DT_NULL => break,
            DT_NEEDED => count += 1,
            _ => {}
        }
    }
    Ok(count)
}

/// The entries of a header table; the three offsets are where the ELF header keeps the table's
/// offset, entry size and entry count.
fn table(file: &[u8], offset: usize, size: usize, count: usize) -> Result<Vec<&[u8]>, ElfError> {
    let start = word(file, offset)?;
    let size = u64::from(u16::from_le_bytes(bytes(file, size)?));
    let count = u64::from(u16::from_le_bytes(bytes(file, count)?));
    (0..count)
        .map(|index| {
            let at = size.checked_mul(index).and_then(|skip| start.checked_add(skip));
            slice(file, at.ok_or(ElfError::Truncated)?, size)
        })
        .collect()
}

fn word(file: &[u8], at: usize) -> Result<u64, ElfError> {
    Ok(u64::from_le_bytes(bytes(file, at)?))
}

fn bytes<const N: usize>(file: &[u8], at: usize) -> Result<[u8; N], ElfError> {
    file.get(at..).and_then(|tail| tail.first_chunk()).copied().ok_or(ElfError::Truncated)
}

fn slice(file: &[u8], start: u64, length: u64) -> Result<&[u8], ElfError> {
    let range = || {
        let start = usize::try_from(start).ok()?;
        let end = start.checked_add(usize::try_from(length).ok()?)?;
        file.get(start..end)
    };
    range().ok_or(ElfError::Truncated)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file with one program header per `(type, contents)` and no sections.
    fn mk_elf(segments: &[(u32, &[u8])]) -> Vec<u8> {
        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.resize(64, 0);
        file[18..20].copy_from_slice(&62u16.to_le_bytes());
        file[32..40].copy_from_slice(&64u64.to_le_bytes());
        file[54..56].copy_from_slice(&56u16.to_le_bytes());
        file[56..58].copy_from_slice(&u16::try_from(segments.len()).unwrap().to_le_bytes());
        let mut contents_at = 64 + 56 * segments.len();
        for (kind, contents) in segments {
            let mut header = [0; 56];
            header[0..4].copy_from_slice(&kind.to_le_bytes());
            header[8..16].copy_from_slice(&(contents_at as u64).to_le_bytes());
            header[32..40].copy_from_slice(&(contents.len() as u64).to_le_bytes());
            file.extend_from_slice(&header);
            contents_at += contents.len();
        }
        for (_, contents) in segments {
            file.extend_from_slice(contents);
        }
        file
    }

    fn mk_dynamic(tags: &[u64]) -> Vec<u8> {
        tags.iter().flat_map(|tag| [tag.to_le_bytes(), [0; 8]]).flatten().collect()
    }

    #[test]
    fn a_static_pie_needs_nothing() {
        let elf = parse(&mk_elf(&[(1, b""), (PT_DYNAMIC, &mk_dynamic(&[7, 0, 1]))])).unwrap();
        assert_eq!((elf.machine, elf.has_interpreter, elf.needed_libraries), (62, false, 0));
    }

    #[test]
    fn loader_and_libraries_are_seen() {
        let elf = parse(&mk_elf(&[(PT_INTERP, b"/lib/ld"), (PT_DYNAMIC, &mk_dynamic(&[1, 1, 0]))]));
        let elf = elf.unwrap();
        assert!(elf.has_interpreter);
        assert_eq!(elf.needed_libraries, 2);
    }

    #[test]
    fn this_test_binary_is_dynamic_and_not_stripped() {
        let file = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let elf = parse(&file).unwrap();
        assert!(elf.has_interpreter && elf.needed_libraries > 0 && elf.has_symbols, "{elf:?}");
    }

    #[test]
    fn broken_files_are_errors() {
        assert_eq!(parse(b"#!/bin/sh\n"), Err(ElfError::NotElf64));
        let whole = mk_elf(&[(PT_DYNAMIC, &mk_dynamic(&[1]))]);
        for length in 6..whole.len() {
            assert_eq!(parse(&whole[..length]), Err(ElfError::Truncated), "{length} bytes");
        }
        let mut wild = whole;
        wild[32..40].copy_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(parse(&wild), Err(ElfError::Truncated));
    }
}
