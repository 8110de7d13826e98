//! Who connects: proxies by user and group, and groups whose traffic is left alone.

use super::Fate::{Direct, Inbound, Outbound};
use super::{Case, Client, Probe, app, istio, outside, own, proxy, user};
use crate::topology::Spot::{Dns, Localhost, OtherDns, Passthrough, Pod, Service};

pub(super) fn cases() -> Vec<Case> {
    vec![
        other_proxy_user(),
        included_groups(),
        no_groups(),
        excluded_groups(),
        several_proxy_users(),
        several_proxy_users_with_dns(),
        proxy_by_group(),
        proxy_by_user_and_group(),
    ]
}

/// A proxy that runs as somebody else, with a group of its own.
pub fn other_proxy_user() -> Case {
    istio(
        "another proxy user",
        &["-u", "2000", "-g", "2001", "-i", "*", "-b", "*"],
        vec![
            user(2000, 3000).tcp(Service, 80).gets(Direct),
            user(3000, 2001).tcp(Service, 80).gets(Direct),
            user(2000, 3000).tcp(Pod, 8080).gets(Inbound),
            proxy().tcp(Service, 80).gets(Outbound),
            proxy().tcp(Pod, 8080).gets(Direct),
            app().tcp(Service, 80).gets(Outbound),
        ],
    )
}

/// Only connections of these groups are captured.
pub fn included_groups() -> Case {
    istio(
        "included groups",
        &["-u", "1337", "-i", "*", "-b", "*"],
        vec![
            user(1000, 4001).tcp(Service, 80).gets(Outbound),
            user(1000, 4002).tcp(Service, 80).gets(Outbound),
            app().tcp(Service, 80).gets(Direct),
            user(0, 0).tcp(Service, 80).gets(Direct),
            proxy().tcp(Service, 80).gets(Direct),
            proxy().tcp(Pod, 8080).gets(Inbound),
            outside().tcp(Pod, 8080).gets(Inbound),
        ],
    )
    .env("ISTIO_OUTBOUND_OWNER_GROUPS", "4001,4002")
}

/// The list of groups is there and empty: nobody's connections are captured.
pub fn no_groups() -> Case {
    istio(
        "no groups",
        &["-u", "1337", "-i", "*", "-b", "*"],
        vec![
            app().tcp(Service, 80).gets(Direct),
            user(0, 0).tcp(Service, 80).gets(Direct),
            outside().tcp(Pod, 8080).gets(Inbound),
        ],
    )
    .env("ISTIO_OUTBOUND_OWNER_GROUPS", "")
}

/// Connections of these groups are left alone.
pub fn excluded_groups() -> Case {
    istio(
        "excluded groups",
        &["-u", "1337", "-i", "*", "-b", "*"],
        vec![
            user(1000, 4001).tcp(Service, 80).gets(Direct),
            user(1000, 4002).tcp(Service, 80).gets(Direct),
            app().tcp(Service, 80).gets(Outbound),
            proxy().tcp(Service, 80).gets(Direct),
        ],
    )
    .env("ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE", "4001,4002")
}

/// What holds for each of several proxies.
fn is_proxy(who: Client) -> [Probe; 5] {
    [
        who.tcp(Service, 80).gets(Direct),
        who.tcp(Pod, 8080).gets(Inbound),
        who.tcp(Localhost, 8080).gets(Direct),
        who.tcp(Pod, 15008).gets(Direct),
        who.from(Passthrough).tcp(Pod, 8080).gets(Direct),
    ]
}

/// What holds for everybody else.
fn is_no_proxy(who: Client) -> [Probe; 3] {
    [
        who.tcp(Service, 80).gets(Outbound),
        who.tcp(Pod, 8080).gets(Direct),
        who.tcp(Localhost, 8080).gets(Direct),
    ]
}

/// Several proxies, each of which is one in full. With the rules of istio-iptables only the first
/// is: the others' self-calls are not captured.
pub fn several_proxy_users() -> Case {
    let probes = [
        &is_proxy(user(1337, 100))[..],
        &is_proxy(user(2000, 100)),
        &is_proxy(user(2001, 100)),
        &is_no_proxy(app()),
        &[outside().tcp(Pod, 8080).gets(Inbound)],
    ];
    own(
        "several proxy users",
        &["--proxy-uid", "1337", "--proxy-uid", "2000", "--proxy-uid", "2001"],
        probes.concat(),
    )
}

/// The same with DNS capture, which changes the rules that self-calls go through.
pub fn several_proxy_users_with_dns() -> Case {
    let probes = [
        &is_proxy(user(1337, 100))[..],
        &is_proxy(user(2000, 100)),
        &is_no_proxy(app()),
        &[
            app().udp(Dns, 53).gets(super::Fate::Dns),
            app().tcp(OtherDns, 53).gets(super::Fate::Dns),
            user(1337, 100).udp(Dns, 53).gets(Direct),
            user(2000, 100).udp(Dns, 53).gets(Direct),
            user(2000, 100).tcp(Dns, 53).gets(Direct),
        ],
    ];
    own(
        "several proxy users with DNS",
        &["--proxy-uid", "1337", "--proxy-uid", "2000", "--dns", "all"],
        probes.concat(),
    )
}

/// A proxy known by its group alone. With the rules of istio-iptables its self-calls are not
/// captured.
pub fn proxy_by_group() -> Case {
    let probes = [
        &is_proxy(user(0, 4000))[..],
        &is_proxy(user(5000, 4000)),
        &is_no_proxy(app()),
        &is_no_proxy(user(0, 0)),
        &is_no_proxy(proxy()),
    ];
    own("a proxy by its group", &["--proxy-gid", "4000"], probes.concat())
}

/// A proxy known by its user, and one by its group.
pub fn proxy_by_user_and_group() -> Case {
    let probes = [
        &is_proxy(user(2000, 100))[..],
        &is_proxy(user(5000, 4000)),
        &is_no_proxy(app()),
        &is_no_proxy(proxy()),
    ];
    own(
        "proxies by user and by group",
        &["--proxy-uid", "2000", "--proxy-gid", "4000"],
        probes.concat(),
    )
}
