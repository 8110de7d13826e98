//! The data of targets, by name and revision (`linux/netfilter/xt_*.h`, `nf_nat.h`).

use std::net::IpAddr;

use super::{Bytes, Extension, Unknown, Writer};
use crate::ruleset::{Masked, RedirectSpelling, Target};
use crate::value::{Family, ListenPort, Zone};

/// `NF_NAT_RANGE_PROTO_SPECIFIED`
const PORTS: u32 = 2;
/// `NF_NAT_RANGE_MAP_IPS`
const ADDRESSES: u32 = 1;
const BOTH: u32 = ADDRESSES | PORTS;
/// `XT_CONNMARK_SET`, `XT_CONNMARK_SAVE`, `XT_CONNMARK_RESTORE`
const SET: u8 = 0;
const SAVE: u8 = 1;
const RESTORE: u8 = 2;

/// What a target does.
///
/// # Errors
/// When it is nothing that Millrace writes.
pub fn read(family: Family, name: &str, revision: u8, data: &[u8]) -> Result<Target, Unknown> {
    let data = Bytes(data);
    match (name, revision) {
        ("REDIRECT", 0) => redirect(family, data),
        ("DNAT" | "SNAT", 0) if family == Family::V4 => translated(name, old_range(data)?),
        ("DNAT" | "SNAT", 1) => translated(name, range(family, data)?),
        ("DNAT" | "SNAT", 2) if data.be16(40)? == 0 => translated(name, range(family, data)?),
        ("TPROXY", 1) => tproxy(data),
        ("MARK", 2) => mark(data),
        // The second revision has a shift in front of the mode.
        ("CONNMARK", 1) => connmark(data, data.u8(12)?),
        ("CONNMARK", 2) if data.is_zero(12, 2)? => connmark(data, data.u8(14)?),
        ("CT", 1 | 2) => ct(data),
        ("REJECT", 0) if data.u32(0)? == port_unreachable(family) => Ok(Target::Reject(family)),
        _ => Err(Unknown::feature(format!("-j {name}, revision {revision}"))),
    }
}

/// `IPT_ICMP_PORT_UNREACHABLE` (`ipt_REJECT.h`), `IP6T_ICMP6_PORT_UNREACH` (`ip6t_REJECT.h`)
const fn port_unreachable(family: Family) -> u32 {
    match family {
        Family::V4 => 3,
        Family::V6 => 4,
    }
}

fn listen_port(port: u16) -> Result<ListenPort, Unknown> {
    ListenPort::new(port).ok_or_else(|| Unknown::feature("port 0"))
}

/// `struct nf_nat_ipv4_multi_range_compat` or `struct nf_nat_range`: one port and no address.
fn redirect(family: Family, data: Bytes<'_>) -> Result<Target, Unknown> {
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

/// Where an address is translated to: flags, the first and the last address, the first and the last port.
type Range = (u32, [IpAddr; 2], [u16; 2]);

/// `struct nf_nat_range`, with which `struct nf_nat_range2` begins.
fn range(family: Family, data: Bytes<'_>) -> Result<Range, Unknown> {
    let addresses = [data.address(family, 4)?, data.address(family, 20)?];
    Ok((data.u32(0)?, addresses, [data.be16(36)?, data.be16(38)?]))
}

/// `struct nf_nat_ipv4_multi_range_compat` with one range, in which older versions say it.
fn old_range(data: Bytes<'_>) -> Result<Range, Unknown> {
    if data.u32(0)? != 1 {
        return Err(Unknown::feature("several ranges"));
    }
    let addresses = [data.address(Family::V4, 8)?, data.address(Family::V4, 12)?];
    Ok((data.u32(4)?, addresses, [data.be16(16)?, data.be16(18)?]))
}

/// One address, and for DNAT one port or none.
fn translated(name: &str, (flags, addresses, ports): Range) -> Result<Target, Unknown> {
    let ([address, last], [first_port, last_port]) = (addresses, ports);
    let plain = address == last && first_port == last_port;
    match (name, flags) {
        ("SNAT", ADDRESSES) if plain && first_port == 0 => Ok(Target::Snat { address }),
        ("DNAT", ADDRESSES) if plain && first_port == 0 => Ok(Target::Dnat { address, port: None }),
        ("DNAT", BOTH) if plain => {
            Ok(Target::Dnat { address, port: Some(listen_port(first_port)?) })
        }
        _ => Err(Unknown::feature(format!("{name} to other than one address and port"))),
    }
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
    let mark = Masked { value: data.u32(0)?, mask: data.u32(4)? };
    // Bits of the value outside the mask would be flipped.
    if mode == SET && mark.value & !mark.mask == 0 {
        return Ok(Target::SetConnmark(mark));
    }
    let full = data.u32(4)? == u32::MAX && data.u32(8)? == u32::MAX;
    match mode {
        SAVE if full => Ok(Target::SaveMark),
        RESTORE if full => Ok(Target::RestoreMark),
        _ => Err(Unknown::feature("CONNMARK with masks or a value")),
    }
}

/// `struct xt_ct_target_info_v1`: a zone and nothing else.
fn ct(data: Bytes<'_>) -> Result<Target, Unknown> {
    // XT_CT_NOTRACK
    if data.u16(0)? & 1 != 0 {
        return Err(Unknown::feature("CT --notrack"));
    }
    // flags; then ct_events, exp_events, helper and timeout
    if data.u16(0)? != 0 || !data.is_zero(4, 8 + 16 + 32)? {
        return Err(Unknown::feature("CT with more than a zone"));
    }
    Ok(Target::Zone(Zone(data.u16(2)?)))
}

/// The data of a target, in the revision that iptables 1.8 writes on every kernel since 4.18; none
/// for a verdict.
pub fn write(family: Family, target: &Target) -> Option<Extension> {
    Some(match target {
        Target::Return | Target::Accept | Target::Drop | Target::Jump(_) => return None,
        Target::Redirect { port, .. } => {
            let port = port.get().to_be_bytes();
            let data = match family {
                Family::V4 => Writer::new(20).u32(0, 1).u32(4, PORTS).put(16, port).put(18, port),
                Family::V6 => Writer::new(40).u32(0, PORTS).put(36, port).put(38, port),
            };
            data.called("REDIRECT", 0)
        }
        Target::Dnat { address, port } => {
            let port_of = port.map_or([0, 0], |port| port.get().to_be_bytes());
            let flags = if port.is_some() { BOTH } else { ADDRESSES };
            let data = Writer::new(44).u32(0, flags).put(36, port_of).put(38, port_of);
            let data = match address {
                IpAddr::V4(v4) => data.put(4, v4.octets()).put(20, v4.octets()),
                IpAddr::V6(v6) => data.put(4, v6.octets()).put(20, v6.octets()),
            };
            data.called("DNAT", 2)
        }
        Target::Snat { address } => match address {
            IpAddr::V4(v4) => {
                let data = Writer::new(20).u32(0, 1).u32(4, ADDRESSES);
                data.put(8, v4.octets()).put(12, v4.octets()).called("SNAT", 0)
            }
            IpAddr::V6(v6) => {
                let data = Writer::new(40).u32(0, ADDRESSES);
                data.put(4, v6.octets()).put(20, v6.octets()).called("SNAT", 1)
            }
        },
        Target::Tproxy { mark, port } => {
            let data = Writer::new(26).u32(0, mark.mask).u32(4, mark.value);
            data.put(24, port.get().to_be_bytes()).called("TPROXY", 1)
        }
        // Bits of the value are set whether the mask names them or not (`--set-mark`).
        Target::SetMark(mark) => {
            Writer::new(8).u32(0, mark.value).u32(4, mark.mask | mark.value).called("MARK", 2)
        }
        Target::SetConnmark(mark) => {
            let data = Writer::new(15).u32(0, mark.value).u32(4, mark.mask).u32(8, u32::MAX);
            data.u8(14, SET).called("CONNMARK", 2)
        }
        Target::SaveMark => connmark_data(SAVE),
        Target::RestoreMark => connmark_data(RESTORE),
        Target::Reject(_) => Writer::new(4).u32(0, port_unreachable(family)).called("REJECT", 0),
        // The struct ends with a pointer of the kernel's.
        Target::Zone(zone) => Writer::new(72).u16(2, zone.0).called("CT", 2),
    })
}

fn connmark_data(mode: u8) -> Extension {
    let data = Writer::new(15).u32(4, u32::MAX).u32(8, u32::MAX);
    data.u8(14, mode).called("CONNMARK", 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn localhost(family: Family) -> IpAddr {
        match family {
            Family::V4 => std::net::Ipv4Addr::LOCALHOST.into(),
            Family::V6 => std::net::Ipv6Addr::LOCALHOST.into(),
        }
    }

    #[test]
    fn translations_are_read_in_every_revision() {
        let port = ListenPort::new(15053).unwrap();
        let to = [127, 0, 0, 1];
        let old = |flags: u32, port: u16| {
            let port = port.to_be_bytes();
            let data = Writer::new(20).u32(0, 1).u32(4, flags).put(8, to).put(12, to);
            data.put(16, port).put(18, port).called("", 0).data
        };
        let address = localhost(Family::V4);
        let dnat = Target::Dnat { address, port: Some(port) };
        let read = |name: &str, revision: u8, data: &[u8]| read(Family::V4, name, revision, data);
        assert_eq!(read("DNAT", 0, &old(BOTH, 15053)), Ok(dnat.clone()));
        assert_eq!(read("SNAT", 0, &old(ADDRESSES, 0)), Ok(Target::Snat { address }));
        let newest = write(Family::V4, &dnat).unwrap().data;
        assert_eq!(read("DNAT", 1, &newest), Ok(dnat));
        // A port, what is random, and several addresses.
        assert!(read("SNAT", 0, &old(BOTH, 15053)).is_err());
        assert!(read("SNAT", 0, &old(ADDRESSES | 4, 0)).is_err());
        let mut several = old(ADDRESSES, 0);
        several[15] = 2;
        assert!(read("SNAT", 0, &several).is_err());
    }

    #[test]
    fn what_is_written_is_read() {
        let port = ListenPort::new(15006).unwrap();
        for family in Family::ALL {
            for target in [
                Target::Redirect { port, spelling: RedirectSpelling::ToPorts },
                Target::Tproxy { mark: Masked { value: 5, mask: 15 }, port },
                Target::Dnat { address: localhost(family), port: Some(port) },
                Target::Dnat { address: localhost(family), port: None },
                Target::Snat { address: localhost(family) },
                Target::SetMark(Masked::exact(1337)),
                Target::SetConnmark(Masked { value: 0x111, mask: 0xfff }),
                Target::SaveMark,
                Target::RestoreMark,
                Target::Zone(Zone(1)),
                Target::Reject(family),
            ] {
                let Extension { name, revision, data } = write(family, &target).unwrap();
                assert!(data.len().is_multiple_of(8), "{name}");
                assert_eq!(read(family, &name, revision, &data), Ok(target));
            }
        }
    }
}
