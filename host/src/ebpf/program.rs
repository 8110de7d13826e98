//! The object, and the programs of single pods that are made of it.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;

use aya::programs::{Program, ProgramError, ProgramFd};
use aya_obj::Object;
use millrace_ebpf_common::{NUMBER_MARK, TELLS_INTERFACE};
use nix::libc;

use super::error::EbpfError;
use super::interrupted::until_not_interrupted;
use super::maps::NAMES;
use super::sys_bpf::{self, Instruction};

/// The eBPF object, as `cargo xtask build-ebpf` makes it.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!("millrace.bpf.o");

/// The hash of the sources that it was made of.
pub const SOURCES: &str = include_str!("millrace.bpf.sha256");

/// The first 4 bytes of that hash, by which loaded programs are told from those of other versions.
pub(super) fn sources() -> u32 {
    SOURCES.get(..8).and_then(|hex| u32::from_str_radix(hex, 16).ok()).unwrap_or(0)
}

/// The program for single pods.
pub(super) const LOOKUP: &str = "mr_sklookup";

/// The operation that loads 8 bytes: they are in this instruction and the next (RFC 9669, 5.4).
const LOAD_WIDE: u8 = 0x18;

/// The `sk_lookup` program with its maps, ready for any pod.
#[derive(Debug)]
pub(super) struct Lookup {
    instructions: Vec<Instruction>,
    /// The maps that the instructions name by number.
    _maps: Vec<OwnedFd>,
}

impl Lookup {
    /// Read it from the object, for the maps in a folder.
    pub(super) fn new(maps_folder: &Path) -> Result<Self, EbpfError> {
        let parse = |error: &dyn std::fmt::Display| EbpfError::Parse(error.to_string());
        let mut object = Object::parse(OBJECT).map_err(|e| parse(&e))?;
        let mut maps = Vec::new();
        for name in NAMES {
            let path = maps_folder.join(name);
            let what = || path.display().to_string();
            let fd = sys_bpf::pinned(&path).map_err(|e| EbpfError::io(what(), e))?;
            maps.push((name, fd.ok_or_else(|| EbpfError::NotLoaded(maps_folder.to_owned()))?));
        }
        let shapes = object.maps.clone();
        let known =
            maps.iter().filter_map(|(name, fd)| Some((*name, fd.as_raw_fd(), shapes.get(*name)?)));
        let text: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
        object.relocate_maps(known, &text).map_err(|e| parse(&e))?;
        object.relocate_calls(&text).map_err(|e| parse(&e))?;
        let missing = || EbpfError::Parse(format!("it has no program {LOOKUP}"));
        let program = object.programs.get(LOOKUP).ok_or_else(missing)?;
        let function = object.functions.get(&program.function_key()).ok_or_else(missing)?;
        let instructions = function.instructions.iter().copied().map(encode).collect();
        Ok(Self { instructions, _maps: maps.into_iter().map(|(_, fd)| fd).collect() })
    }

    /// Load it with a number.
    pub(super) fn load(&self, number: u32) -> Result<OwnedFd, EbpfError> {
        let number = u64::from(number);
        match self.try_to_load(number | TELLS_INTERFACE) {
            // Before Linux 5.17 the verifier knows no interface, and refuses who asks for it.
            Err(EbpfError::Program { source, .. }) if is_refusal(&source) => {
                self.try_to_load(number)
            }
            other => other,
        }
    }

    fn try_to_load(&self, number: u64) -> Result<OwnedFd, EbpfError> {
        let instructions = with_number(&self.instructions, number)
            .ok_or_else(|| EbpfError::Parse(format!("{LOOKUP} has no place for a number")))?;
        sys_bpf::load_lookup(&instructions, LOOKUP)
            .map_err(|(source, log)| EbpfError::of_verifier(LOOKUP, source, log))
    }
}

/// Let the verifier look at a program.
pub(super) fn accept<'o>(
    name: &str,
    program: Option<&'o mut Program>,
) -> Result<&'o ProgramFd, EbpfError> {
    let missing = || EbpfError::Parse(format!("it has no program {name}"));
    let program = program.ok_or_else(missing)?;
    let failed = |error| match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            EbpfError::of_verifier(name, io_error, verifier_log.to_string())
        }
        other => EbpfError::Parse(format!("{name}: {other}")),
    };
    let errno = |error: &ProgramError| match error {
        ProgramError::LoadError { io_error, .. } => io_error.raw_os_error(),
        _ => None,
    };
    let load = || match program {
        Program::CgroupSockAddr(p) => p.load(),
        Program::CgroupSockopt(p) => p.load(),
        Program::SockOps(p) => p.load(),
        Program::SkMsg(p) => p.load(),
        Program::SkLookup(p) => p.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    };
    until_not_interrupted(load, errno).and_then(|()| program.fd()).map_err(failed)
}

/// Whether the verifier did not accept what a program does: anything else that keeps it from being loaded
/// (no memory, say) is no reason for one that decides by less.
fn is_refusal(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EACCES | libc::EINVAL))
}

/// An instruction's 8 bytes (`struct bpf_insn`).
fn encode(insn: aya_obj::generated::bpf_insn) -> Instruction {
    let [o0, o1] = insn.off.to_ne_bytes();
    let [i0, i1, i2, i3] = insn.imm.to_ne_bytes();
    [insn.code, insn.dst_reg() | insn.src_reg() << 4, o0, o1, i0, i1, i2, i3]
}

/// The instructions with a number in the place of the mark; none if the mark is not there exactly
/// once.
fn with_number(instructions: &[Instruction], number: u64) -> Option<Vec<Instruction>> {
    let (mark, number) = (NUMBER_MARK.to_le_bytes(), number.to_le_bytes());
    let ((mark_low, mark_high), (low, high)) = (mark.split_at(4), number.split_at(4));
    // The immediate is the second half of an instruction.
    let is = |insn: &Instruction, half: &[u8]| insn.ends_with(half);
    let set = |insn: &mut Instruction, half: &[u8]| {
        if let Some(place) = insn.get_mut(4..) {
            place.copy_from_slice(half);
        }
    };
    let mut all = instructions.to_vec();
    let mut places = 0;
    for at in 0..all.len() {
        let [first, second, ..] = all.get_mut(at..)? else { break };
        // A wide load of a plain number has no source register.
        let plain = matches!(first, [LOAD_WIDE, registers, ..] if *registers >> 4 == 0);
        if plain && is(first, mark_low) && is(second, mark_high) {
            set(first, low);
            set(second, high);
            places += 1;
        }
    }
    (places == 1).then_some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_takes_the_place_of_the_mark() {
        let mark = NUMBER_MARK.to_le_bytes();
        let (low, high) = mark.split_at(4);
        let wide = [LOAD_WIDE, 1, 0, 0, low[0], low[1], low[2], low[3]];
        let rest = [0, 0, 0, 0, high[0], high[1], high[2], high[3]];
        let other = [0x95, 0, 0, 0, 0, 0, 0, 0];
        let done = with_number(&[other, wide, rest, other], 0x01_0506_0708).unwrap();
        assert_eq!(done[1], [LOAD_WIDE, 1, 0, 0, 8, 7, 6, 5]);
        assert_eq!(done[2], [0, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(with_number(&[other, other], 1), None);
        assert_eq!(with_number(&[wide, rest, wide, rest], 1), None);
        assert_eq!(with_number(&[], 1), None);
    }
}
