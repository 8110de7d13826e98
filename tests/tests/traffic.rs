//! Packets, really sent: every case, with both iptables, in pods with IPv4, IPv6 and both.

use anyhow::Result;
use millrace_tests::cases::{dns, identity, inbound, interfaces, listener, outbound, tproxy};
use millrace_tests::scenario::verify;

/// One test for each case, so that they run side by side and each failure has a name.
macro_rules! cases {
    ($($module:ident: $($case:ident)*;)*) => {
        $($(
            #[test]
            fn $case() -> Result<()> {
                verify(&$module::$case())
            }
        )*)*

        /// Verify that no case is left out above.
        #[test]
        fn every_case_is_played() {
            let played: Vec<&str> = vec![$($($module::$case().name),*),*];
            let all: Vec<&str> = millrace_tests::cases::all().iter().map(|c| c.name).collect();
            assert_eq!(played, all);
        }
    };
}

cases! {
    outbound: sidecar outbound_off included_networks excluded_networks networks_in_networks
        excluded_ports included_ports other_proxy_ports loopback_network_included wider_localhost;
    inbound: included_inbound_ports inbound_off invalid_let_in invalid_dropped;
    identity: other_proxy_user included_groups no_groups excluded_groups several_proxy_users
        several_proxy_users_with_dns proxy_by_group proxy_by_user_and_group;
    interfaces: two_interfaces excluded_interface excluded_interface_tproxy rerouted_interface
        rerouted_interface_networks;
    dns: dns_servers dns_all dns_excluded_port dns_without_servers_asked dns_on_localhost;
    tproxy: tproxy_all tproxy_list tproxy_inbound_off tproxy_other_mark tproxy_dns;
    listener: redirect_unheard tproxy_unheard tproxy_list_unheard tproxy_opaque
        own_redirect_unheard own_tproxy_unheard own_tproxy_opaque;
}
