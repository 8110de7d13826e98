//! Random routes, rules of policy routing, settings and addresses of a pod.

use super::rule::TPROXY_MARK;
use super::step::Step;
use crate::fates::Dice;

/// Lines of `ip` that a pod can have, each alone.
const IP: [&str; 42] = [
    "rule add from 10.70.0.2 lookup 100",
    "rule add from 127.0.0.1 lookup 100",
    "rule add uidrange 1000-1000 lookup 100",
    "-6 rule add uidrange 0-999 lookup 100",
    "rule add fwmark 0x10/0xf0 lookup 100",
    "-6 rule add fwmark 0x1/0x1 lookup 100",
    "rule add not fwmark 0x1/0x1 lookup 100",
    "rule add to 10.72.0.0/16 lookup 100",
    "-6 rule add to fd72::/16 lookup 100",
    "rule add iif eth0 lookup 100",
    "rule add iif lo lookup 100",
    "rule add fwmark 2 prohibit",
    "rule add to 10.73.0.0/16 unreachable",
    "rule add uidrange 5-5 blackhole",
    "rule add pref 90 lookup main suppress_prefixlength 0",
    "rule add tos 0x10 lookup 100",
    "rule add ipproto udp lookup 100",
    "rule add ipproto tcp dport 80-443 lookup 100",
    "-6 rule add sport 20000-60000 dport 9090 lookup 100",
    "route add unreachable 10.72.0.0/16",
    "route add blackhole 10.74.0.0/16",
    "-6 route add prohibit fd72::/16",
    "route add throw 10.73.0.0/16",
    "route add 10.72.0.0/16 via 10.80.0.1",
    "-6 route add fd72::/16 via fd80::1",
    "route add 10.71.0.0/16 nexthop via 10.70.0.1 nexthop via 10.80.0.1",
    "route change default via 10.80.0.1",
    "-6 route change default via fd80::1",
    "route add 10.72.0.0/16 via 10.70.0.1 src 10.80.0.2",
    "route del default",
    "route add 10.73.0.0/16 via 10.80.0.1 table default",
    "route add default via 10.80.0.1 dev eth1 table default",
    "addr add 10.70.0.9/24 dev eth0",
    "addr add 10.77.0.2/24 dev eth0",
    "addr add 10.77.0.2/32 dev lo",
    "addr add fd77::2/64 dev eth1 nodad",
    "addr add 10.71.0.7/16 dev lo",
    "addr add 10.70.0.7/16 dev lo",
    "addr add 10.77.0.2 peer 10.70.0.1/32 dev eth0",
    "addr add 10.77.0.2/24 dev eth0 scope link",
    "addrlabel add prefix fd72::/16 label 77",
    "link set eth1 down",
];

/// Settings that a pod can have.
const SETTINGS: [&str; 20] = [
    "net.ipv4.conf.all.rp_filter=1",
    "net.ipv4.conf.eth0.rp_filter=2",
    "net.ipv4.conf.eth1.rp_filter=1",
    "net.ipv4.conf.all.src_valid_mark=1",
    "net.ipv4.conf.eth0.accept_local=1",
    "net.ipv4.conf.all.route_localnet=0",
    "net.ipv4.conf.all.route_localnet=1",
    "net.ipv4.conf.eth0.route_localnet=1",
    "net.ipv4.ip_forward=1",
    "net.ipv4.ip_forward=1",
    "net.ipv4.conf.eth0.forwarding=1",
    "net.ipv4.conf.eth1.forwarding=1",
    "net.ipv6.conf.all.forwarding=1",
    "net.ipv6.conf.all.forwarding=1",
    "net.ipv6.conf.eth0.forwarding=1",
    "net.ipv6.conf.eth1.disable_ipv6=1",
    "net.ipv6.conf.lo.disable_ipv6=1",
    "net.ipv4.tcp_fwmark_accept=1",
    "net.ipv4.fwmark_reflect=1",
    "net.ipv6.fwmark_reflect=1",
];

/// What is around a pod's rules: little of it in most.
pub(super) fn around(dice: &mut Dice) -> Vec<Step> {
    let mut steps = Vec::new();
    for _ in 0..dice.pick(&[0, 0, 1, 1, 2, 3]) {
        steps.push(Step::words("sysctl", &format!("-qw {}", dice.pick(&SETTINGS))));
    }
    let lines: Vec<&str> = (0..dice.pick(&[0, 0, 0, 1, 1, 2])).map(|_| dice.pick(&IP)).collect();
    if lines.iter().any(|line| line.ends_with("lookup 100")) {
        let v6 = "-6 route add default via fd80::1 dev eth1 table 100";
        let routes: &[&str] = match dice.pick(&[0, 1, 2]) {
            0 => &["route add default via 10.80.0.1 dev eth1 table 100", v6],
            1 => &["route add default via 10.70.0.1 dev eth0 table 100"],
            _ => &["route add 10.72.0.0/16 via 10.80.0.1 dev eth1 table 100", v6],
        };
        steps.extend(routes.iter().map(|line| Step::words("ip", line)));
    }
    steps.extend(lines.iter().map(|line| Step::words("ip", line)));
    steps
}

/// What delivers packets here that rules have handed to a transparent socket.
pub(super) fn tproxy() -> Vec<Step> {
    ["", "-6 "]
        .iter()
        .flat_map(|family| {
            [
                format!("{family}rule add fwmark {TPROXY_MARK:#x}/{TPROXY_MARK:#x} lookup 233"),
                format!("{family}route add local default dev lo table 233"),
            ]
        })
        .map(|line| Step::words("ip", &line))
        .collect()
}
