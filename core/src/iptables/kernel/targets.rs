//! The data of targets, by name and revision (`linux/netfilter/xt_*.h`, `nf_nat.h`).

use super::{Bytes, Unknown};
use crate::ruleset::{Masked, RedirectSpelling, Target};
use crate::value::{Family, ListenPort, Zone};

/// What a target does.
pub(super) fn read(
    family: Family,
    name: &str,
    revision: u8,
    data: Bytes<'_>,
) -> Result<Target, Unknown> {
    match (name, revision) {
        ("REDIRECT", 0) => redirect(family, data),
        ("TPROXY", 1) => tproxy(data),
        ("MARK", 2) => mark(data),
        // The second revision has a shift in front of the mode.
        ("CONNMARK", 1) => connmark(data, data.u8(12)?),
        ("CONNMARK", 2) if data.is_zero(12, 2)? => connmark(data, data.u8(14)?),
        ("CT", 1 | 2) => ct(data),
        _ => Err(Unknown::feature(format!("-j {name}, revision {revision}"))),
    }
}

fn listen_port(port: u16) -> Result<ListenPort, Unknown> {
    ListenPort::new(port).ok_or_else(|| Unknown::feature("port 0"))
}

/// `struct nf_nat_ipv4_multi_range_compat` or `struct nf_nat_range`: one port and no address.
fn redirect(family: Family, data: Bytes<'_>) -> Result<Target, Unknown> {
    // NF_NAT_RANGE_PROTO_SPECIFIED
    const PORTS: u32 = 2;
    let (flags, ports, plain) = match family {
        Family::V4 => (data.u32(4)?, 16, data.u32(0)? == 1),
        Family::V6 => (data.u32(0)?, 36, true),
    };
    let (first, last) = (data.be16(ports)?, data.be16(ports + 2)?);
    if !plain || flags != PORTS || first != last {
        return Err(Unknown::feature("REDIRECT to other than one port"));
    }
    Ok(Target::Redirect { port: listen_port(first)?, spelling: RedirectSpelling::ToPorts })
}

/// `struct xt_mark_tginfo2`: bits of the value outside the mask would be flipped.
fn mark(data: Bytes<'_>) -> Result<Target, Unknown> {
    let mark = Masked { value: data.u32(0)?, mask: data.u32(4)? };
    if mark.value & !mark.mask != 0 {
        return Err(Unknown::feature("MARK that flips bits"));
    }
    Ok(Target::SetMark(mark))
}

/// `struct xt_tproxy_target_info_v1`
fn tproxy(data: Bytes<'_>) -> Result<Target, Unknown> {
    if !data.is_zero(8, 16)? {
        return Err(Unknown::feature("TPROXY to an address"));
    }
    let mark = Masked { value: data.u32(4)?, mask: data.u32(0)? };
    Ok(Target::Tproxy { mark, port: listen_port(data.be16(24)?)? })
}

/// `struct xt_connmark_tginfo1`: ctmark, ctmask, nfmask.
fn connmark(data: Bytes<'_>, mode: u8) -> Result<Target, Unknown> {
    let full = data.u32(4)? == u32::MAX && data.u32(8)? == u32::MAX;
    match mode {
        1 if full => Ok(Target::SaveMark),
        2 if full => Ok(Target::RestoreMark),
        _ => Err(Unknown::feature("CONNMARK with masks or a value")),
    }
}

/// `struct xt_ct_target_info_v1`: a zone and nothing else.
fn ct(data: Bytes<'_>) -> Result<Target, Unknown> {
    // flags; then ct_events, exp_events, helper and timeout
    if data.u16(0)? != 0 || !data.is_zero(4, 8 + 16 + 32)? {
        return Err(Unknown::feature("CT with more than a zone"));
    }
    Ok(Target::Zone(Zone(data.u16(2)?)))
}
