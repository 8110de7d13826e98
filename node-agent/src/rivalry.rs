//! Another mesh's agent that puts its entry back each time that it is taken over: after a few times
//! it is left alone for a while, so that the list stays as it is and each pod is captured once.

use std::time::{Duration, Instant};

use crate::foreign::Mesh;

/// So often within [`SPAN`] is it taken over.
const TIMES: usize = 3;
const SPAN: Duration = Duration::from_mins(5);
/// For how long it is left alone at first; twice as long each further time.
const FIRST_PAUSE: Duration = Duration::from_mins(5);
const LONGEST_PAUSE: Duration = Duration::from_hours(4);

/// Whose entries were taken over lately, and whose are left alone until when.
#[derive(Debug, Default)]
pub struct Rivalry {
    taken: Vec<(Mesh, Instant)>,
    yielded: Vec<(Mesh, Instant)>,
    pauses: u32,
}

impl Rivalry {
    /// Whether an entry may be taken over now. Once it was too often, it is left alone from now on.
    pub fn may_take(&mut self, mesh: Mesh, now: Instant) -> bool {
        self.taken.retain(|(_, at)| now.duration_since(*at) < SPAN);
        if self.taken.iter().filter(|(own, _)| *own == mesh).count() < TIMES {
            return true;
        }
        let pause = FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(self.pauses));
        self.pauses = self.pauses.saturating_add(1);
        self.taken.retain(|(own, _)| *own != mesh);
        self.yielded.push((mesh, now + pause.min(LONGEST_PAUSE)));
        false
    }

    /// Note that it was taken over.
    pub fn took(&mut self, mesh: Mesh, now: Instant) {
        self.taken.push((mesh, now));
    }

    /// Whose entries are left alone now.
    pub fn yielded(&mut self, now: Instant) -> Vec<Mesh> {
        self.yielded.retain(|(_, until)| now < *until);
        self.yielded.iter().map(|(mesh, _)| *mesh).collect()
    }

    /// Note that no entry of these meshes is there any more.
    pub fn gone(&mut self, meshes: impl Fn(Mesh) -> bool) {
        self.yielded.retain(|(mesh, _)| !meshes(*mesh));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(rivalry: &mut Rivalry, mesh: Mesh, now: Instant) -> bool {
        let may = rivalry.may_take(mesh, now);
        if may {
            rivalry.took(mesh, now);
        }
        may
    }

    #[test]
    fn who_insists_is_left_alone_for_longer_each_time() {
        let mut rivalry = Rivalry::default();
        let mut now = Instant::now();
        for pause in [FIRST_PAUSE, FIRST_PAUSE * 2] {
            for _ in 0..TIMES {
                assert!(take(&mut rivalry, Mesh::Istio, now));
            }
            assert!(take(&mut rivalry, Mesh::Linkerd, now));
            assert!(!take(&mut rivalry, Mesh::Istio, now));
            assert_eq!(rivalry.yielded(now), [Mesh::Istio]);
            now += pause.saturating_sub(Duration::from_secs(1));
            assert_eq!(rivalry.yielded(now), [Mesh::Istio]);
            now += Duration::from_secs(1);
            assert_eq!(rivalry.yielded(now), []);
        }
    }

    #[test]
    fn who_is_uninstalled_is_waited_for_no_longer() {
        let mut rivalry = Rivalry::default();
        let now = Instant::now();
        while take(&mut rivalry, Mesh::Istio, now) {}
        assert_eq!(rivalry.yielded(now), [Mesh::Istio]);
        rivalry.gone(|mesh| mesh == Mesh::Istio);
        assert_eq!(rivalry.yielded(now), []);
    }

    #[test]
    fn now_and_then_is_no_rivalry() {
        let mut rivalry = Rivalry::default();
        let mut now = Instant::now();
        for _ in 0..20 {
            assert!(take(&mut rivalry, Mesh::Istio, now));
            now += SPAN / 2;
        }
    }
}
