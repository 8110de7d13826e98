//! What is to capture a namespace: the policy, and what carries it out, in every backend's spelling. Every
//! front end makes it here, so the same policy is never two things.

use crate::capture::{to_iptables, to_nft};
use crate::dialect::{Dialect, MARKS};
use crate::nft::{NftRuleset, finished};
use crate::policy::{CapturePolicy, InboundMode};
use crate::ruleset::Ruleset;

/// What is to capture a namespace.
#[derive(Clone, Debug)]
pub struct Desired {
    /// In no backend's words; both rulesets here are lowered from it.
    pub policy: CapturePolicy,
    /// Its rules for either iptables.
    pub iptables: Ruleset,
    /// Its rules for native nftables; none where these were not asked for, and must not be taken.
    pub native: Option<NftRuleset>,
}

impl Desired {
    /// A policy in the names of a dialect, for every backend.
    pub fn new(policy: CapturePolicy, dialect: &Dialect) -> Self {
        let iptables = to_iptables(&policy, dialect.footprint.layout);
        let native = Some(finished(to_nft(&policy, dialect.nft_layout, true), true));
        Self { policy, iptables, native }
    }

    /// Marks with their routing tables that belong to this capture, or to one that it takes the place of.
    pub fn marks(&self) -> Vec<(u32, u32)> {
        let mut marks = MARKS.to_vec();
        if let InboundMode::Tproxy { mark, table, .. } = &self.policy.inbound.mode {
            marks.push((mark.value.get(), table.value.get()));
        }
        marks
    }
}
