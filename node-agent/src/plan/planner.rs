//! The decisions: which list is the one, what becomes of others' entries in it, and where the plugin
//! stands.

use super::own::{is_default, of_meshes};
use super::{
    Candidate, Cause, Desired, DropIn, Mode, Plan, Seen, State, Step, default_file, is_list,
    withdraw,
};
use crate::foreign::{Mesh, NotTaken};
use crate::list::{Entry, List, is_file_name};
use crate::settings::Settings;

/// Decide by a snapshot which steps make it what is desired; none where it is.
pub fn plan(seen: &Seen, wanted: &Desired) -> Plan {
    let (steps, carried) = (Vec::new(), Vec::new());
    Planner { seen, wanted, steps, words: Vec::new(), lost: Vec::new(), carried }.plan()
}

struct Planner<'p> {
    seen: &'p Seen,
    wanted: &'p Desired,
    steps: Vec<Step>,
    words: Vec<String>,
    lost: Vec<String>,
    /// Entries that others put into the agent's own file, and that stay.
    carried: Vec<Entry>,
}

impl<'p> Planner<'p> {
    fn plan(mut self) -> Plan {
        let state = match self.wanted.mode {
            Mode::Standalone => self.standalone(),
            _ => self.chained(),
        };
        let state = state.unwrap_or_else(|state| state);
        Plan { steps: self.steps, state, words: self.words, lost: self.lost }
    }

    fn chained(&mut self) -> Result<State, State> {
        let (base, list) = self.base()?;
        let taken = self.take(base, list)?;
        let entry = self.entry(&taken)?;
        let kept = list.clone().without(|kind| self.is_own_or(&taken, kind));
        let carried = self.carried.iter().cloned();
        let whole = carried.fold(kept.clone(), List::with).with(entry.clone());
        let mode = match self.wanted.mode {
            // A single plugin's file has no room for another one.
            Mode::Chained | Mode::DropIn if !is_list(&base.name) => Mode::OwnFile,
            // In one rename first: the drop-in directory is another file.
            Mode::DropIn if !taken.is_empty() || !self.carried.is_empty() => Mode::Chained,
            mode => mode,
        };
        let state = match mode {
            Mode::OwnFile => self.own_file(base, list, &whole, &taken)?,
            Mode::DropIn => self.drop_in(list, &entry)?,
            _ => {
                if !list.says(&whole) {
                    let cause = self.cause(list, &entry, &taken);
                    self.steps.push(base.written(&whole, cause));
                }
                State::Installed { file: base.name.clone() }
            }
        };
        // What is left of another mode, once the one that is wanted is there.
        let own = self.own_name(mode);
        if mode != Mode::Chained {
            self.steps.extend(Self::after_taking(base, list, &kept, &taken));
        }
        let name = self.own_name(Mode::DropIn);
        let files = self
            .seen
            .files
            .iter()
            .filter(|file| self.is_own(file) && (mode != Mode::OwnFile || file.name != own))
            .map(|file| Step::Remove { file: file.name.clone() });
        let drop_ins = self
            .seen
            .drop_ins
            .iter()
            .filter(|there| {
                let wanted = there.network == list.name && there.file == name;
                there.is_own && (mode != Mode::DropIn || !wanted)
            })
            .map(DropIn::removed);
        let others: Vec<Step> = files.chain(drop_ins).collect();
        self.steps.extend(others);
        self.copies(base, list, &taken);
        Ok(state)
    }

    /// The base without the plugin, which stands elsewhere, and without what was taken over.
    fn after_taking(
        base: &Candidate,
        list: &List,
        kept: &List,
        taken: &[(Mesh, Settings)],
    ) -> Option<Step> {
        if !is_list(&base.name) || list.says(kept) || kept.plugins.is_empty() {
            return None;
        }
        let cause = if taken.is_empty() { Cause::Withdrawn } else { Cause::TakenOver };
        Some(base.written(kept, cause))
    }

    /// The list that the runtime uses, or would use without the agent's own.
    fn base(&mut self) -> Result<(&'p Candidate, &'p List), State> {
        let seen = self.seen;
        let others: Vec<&Candidate> = seen.files.iter().filter(|file| !self.is_own(file)).collect();
        let named = self.wanted.file.as_ref().filter(|_| self.wanted.mode == Mode::Chained);
        if let Some(name) = named {
            let found =
                others.iter().find(|file| file.name == *name || file.name == format!("{name}list"));
            let Some(file) = found else {
                return Err(State::Waiting(format!("there is no {name} (--conf-file) yet")));
            };
            if others.first().is_some_and(|first| first.name != file.name) {
                self.words.push(format!(
                    "{0} is in front of {1}: a runtime that reads one file alone, the first, reads {0}",
                    others[0].name, file.name
                ));
            }
            let list = file.list.as_ref();
            self.is_free(file)?;
            return list
                .map(|list| (*file, list))
                .map_err(|why| State::Waiting(format!("{}: {why}", file.name)));
        }
        let mut bad = Vec::new();
        for file in others.iter().copied() {
            match &file.list {
                // A copy that another agent made and put in front goes when the original has it all.
                Ok(list) if self.is_copy(file, list, &others) || self.is_target(file) => {}
                Ok(list) => {
                    self.is_free(file)?;
                    // containerd stops at a bad file, CRI-O goes on to the next.
                    self.words.extend(bad);
                    return Ok((file, list));
                }
                Err(why) => bad.push(format!("{}: {why}", file.name)),
            }
        }
        Err(State::Waiting(if bad.is_empty() {
            "there is no list of plugins yet: the cluster's network plugin makes one".to_owned()
        } else {
            bad.join("; ")
        }))
    }

    /// Whether a file that is not the agent's leaves it the name that its own has: the plugin in it
    /// would make it the agent's own.
    fn is_free(&mut self, file: &Candidate) -> Result<(), State> {
        if !is_default(&file.name) {
            return Ok(());
        }
        Err(self.refused(format!(
            "{} has the name of the agent's own file, and is somebody else's: rename it",
            file.name
        )))
    }

    /// Whether the agent's own list is to have the name of this one, which is another mesh's and
    /// taken over: it is made of the list behind it.
    fn is_target(&self, file: &Candidate) -> bool {
        self.wanted.mode == Mode::OwnFile
            && file.name == self.own_name(Mode::OwnFile)
            && !self.is_own(file)
            && file
                .list
                .as_ref()
                .is_ok_and(|list| of_meshes(list).any(|(_, entry)| self.is_taken(entry.kind())))
    }

    fn is_own(&self, file: &Candidate) -> bool {
        self.wanted.own.has(file, self.seen, &self.wanted.kind)
    }

    /// Whether a list is what an agent of another mesh made of a later one: named after its plugin,
    /// with the same network and plugins.
    fn is_copy(&self, file: &Candidate, list: &List, files: &[&Candidate]) -> bool {
        let is_taken = |kind: &str| self.is_taken(kind);
        let is_named = |kind: &str| {
            Mesh::of(kind).is_some_and(|mesh| file.name.contains(mesh.plugin())) && is_taken(kind)
        };
        if !is_list(&file.name) || list.places(is_named).is_empty() {
            return false;
        }
        let kinds = |list: &List| -> Vec<String> {
            let kinds = list.plugins.iter().map(|entry| entry.kind().to_owned());
            kinds.filter(|kind| !is_taken(kind) && *kind != self.wanted.kind).collect()
        };
        files.iter().any(|other| {
            let later = other.name > file.name;
            let same = |other: &List| other.name == list.name && kinds(other) == kinds(list);
            later && other.list.as_ref().is_ok_and(same)
        })
    }

    /// Keep and remove such copies: by then the original has the plugin.
    fn copies(&mut self, base: &Candidate, list: &List, taken: &[(Mesh, Settings)]) {
        let files: Vec<&Candidate> = self.seen.files.iter().collect();
        for file in &files {
            let Ok(copy) = &file.list else { continue };
            let stays = self.is_own(file) || self.is_target(file) || file.name == base.name;
            if stays || copy.name != list.name || !self.is_copy(file, copy, &files) {
                continue;
            }
            let meshes = copy.plugins.iter().filter_map(|entry| Mesh::of(entry.kind()));
            for (mesh, settings) in meshes.filter_map(|mesh| taken.iter().find(|t| t.0 == mesh)) {
                self.steps.push(Step::KeepFile {
                    mesh: *mesh,
                    file: file.name.clone(),
                    settings: settings.clone(),
                });
            }
            self.steps.push(Step::Remove { file: file.name.clone() });
        }
    }

    fn is_taken(&self, kind: &str) -> bool {
        let taken =
            |mesh| self.wanted.take_over.contains(&mesh) && !self.wanted.yield_to.contains(&mesh);
        Mesh::of(kind).is_some_and(taken)
    }

    fn is_own_or(&self, taken: &[(Mesh, Settings)], kind: &str) -> bool {
        let is_taken = |mesh| taken.iter().any(|(own, _)| *own == mesh);
        kind == self.wanted.kind || Mesh::of(kind).is_some_and(is_taken)
    }

    /// Entries of other meshes in the base, in copies of it, in a file whose name the agent's own gets,
    /// and in the agent's own, where another agent took that for the network's: their settings, where
    /// they are taken over.
    fn take(
        &mut self,
        base: &'p Candidate,
        list: &'p List,
    ) -> Result<Vec<(Mesh, Settings)>, State> {
        let seen = self.seen;
        let files: Vec<&Candidate> = seen.files.iter().collect();
        let more = seen.files.iter().filter_map(|file| {
            let copy = file.list.as_ref().ok()?;
            let counts =
                self.is_own(file) || self.is_target(file) || self.is_copy(file, copy, &files);
            (file.name != base.name && counts).then_some((file, copy))
        });
        let sources: Vec<(&Candidate, &List)> = more.chain([(base, list)]).collect();
        let mut taken: Vec<(Mesh, Settings)> = Vec::new();
        for (file, from) in sources {
            let is_own = self.is_own(file);
            for (mesh, entry) in of_meshes(from) {
                if !self.is_taken(entry.kind()) {
                    self.leave(mesh)?;
                    let is_elsewhere = of_meshes(list).any(|(own, _)| own == mesh)
                        || self.carried.iter().any(|own| Mesh::of(own.kind()) == Some(mesh));
                    if (is_own || self.is_target(file)) && !is_elsewhere {
                        self.carried.push(entry.clone());
                    }
                    continue;
                }
                let found = mesh
                    .take(entry, self.wanted.settings.enrols())
                    .map_err(|why| self.block(&why))?;
                self.lost.extend(found.words.iter().map(|word| format!("{mesh}: {word}")));
                // Of the others the whole file is kept.
                if file.name == base.name || is_own {
                    self.steps.push(Step::Keep {
                        mesh,
                        file: file.name.clone(),
                        entry: entry.clone(),
                        settings: found.settings.clone(),
                    });
                }
                if taken.iter().all(|(own, _)| *own != mesh) {
                    taken.push((mesh, found.settings));
                }
            }
        }
        Ok(taken)
    }

    /// Say of an entry that is left alone that it is there. Istio's captures the same pods as ours
    /// does, and so does that of a mesh whose settings ours has: both would capture them.
    fn leave(&mut self, mesh: Mesh) -> Result<(), State> {
        let ours =
            mesh.key().is_none_or(|key| self.wanted.settings.has(key) || self.wanted.kept.has(key));
        if ours && self.wanted.yield_to.contains(&mesh) {
            return Err(self.withdrawn(format!(
                "the agent of {mesh} puts its entry back each time that it is taken over: uninstall \
                 {mesh}, and the plugin is installed again"
            )));
        }
        if ours {
            return Err(self.withdrawn(format!(
                "{mesh} captures the pods of this node: have it taken over (--take-over {mesh}), or \
                 uninstall it"
            )));
        }
        self.words
            .push(format!("{mesh} is left in the list: it captures the pods of its own mesh"));
        Ok(())
    }

    fn block(&mut self, why: &NotTaken) -> State {
        self.withdrawn(why.to_string())
    }

    /// Have the plugin called by nothing, for this reason.
    fn withdrawn(&mut self, why: String) -> State {
        self.steps = withdraw(self.seen, &self.wanted.kind, &self.wanted.own);
        State::Blocked(why)
    }

    /// Change nothing, for this reason.
    fn refused(&mut self, why: String) -> State {
        self.steps.clear();
        State::Blocked(why)
    }

    /// Keep a file of others whose name the agent's own gets. It has to be of a mesh whose entries
    /// are taken over: anything else may be what the node's pods are connected with.
    fn keep_file(&mut self, file: &Candidate, taken: &[(Mesh, Settings)]) -> Result<(), State> {
        let list = file.list.as_ref().ok();
        let own = list.and_then(|list| {
            of_meshes(list).find_map(|(mesh, _)| taken.iter().find(|(own, _)| *own == mesh))
        });
        let Some((mesh, settings)) = own else {
            return Err(self.refused(format!(
                "{} is there already, and is not the agent's: choose another name (--conf-file), or \
                 remove it",
                file.name
            )));
        };
        let (mesh, settings) = (*mesh, settings.clone());
        self.steps.push(Step::KeepFile { mesh, file: file.name.clone(), settings });
        Ok(())
    }

    /// Write a file of the agent's own.
    fn write_own(&mut self, name: &str, there: Option<&Candidate>, text: String, cause: Cause) {
        if !self.wanted.own.written.iter().any(|own| own == name) {
            self.steps.push(Step::Own { file: name.to_owned() });
        }
        let was = there.map(|file| file.text.clone());
        self.steps.push(Step::Write { file: name.to_owned(), was, text, cause });
    }

    fn entry(&mut self, taken: &[(Mesh, Settings)]) -> Result<Entry, State> {
        let mut settings = self.wanted.settings.clone();
        for (_, of_mesh) in taken {
            settings = settings.over(of_mesh);
        }
        let settings = settings.over(&self.wanted.kept).over(&self.wanted.places);
        let whole = Settings::new(settings.members().clone());
        let whole = whole.map_err(|error| self.refused(format!("the settings: {error}")))?;
        whole.entry(&self.wanted.kind).map_err(|error| self.refused(error.to_string()))
    }

    fn own_name(&self, mode: Mode) -> String {
        let named = self.wanted.file.clone().filter(|_| self.wanted.mode == mode);
        named.unwrap_or_else(|| default_file(mode).to_owned())
    }

    fn own_file(
        &mut self,
        base: &Candidate,
        list: &List,
        whole: &List,
        taken: &[(Mesh, Settings)],
    ) -> Result<State, State> {
        let name = self.own_name(Mode::OwnFile);
        if base.name == name {
            return Err(self.refused(format!(
                "{name} is the list that the runtime uses, and not the agent's: choose another name \
                 (--conf-file), which sorts before it"
            )));
        }
        let front = self.seen.files.iter().find(|file| file.name != name && file.name < name);
        if let Some(front) = front {
            return Err(self.refused(format!(
                "{} is in front of {name}: choose a file name that sorts before it",
                front.name
            )));
        }
        let there = self.seen.files.iter().find(|file| file.name == name);
        let said = there.and_then(|file| file.list.as_ref().ok());
        if let Some(foreign) = there.filter(|file| !self.is_own(file)) {
            self.keep_file(foreign, taken)?;
            self.write_own(&name, there, whole.text(), Cause::TakenOver);
        } else if !said.is_some_and(|said| said.says(whole)) {
            let cause = match said {
                None => Cause::Missing,
                Some(said) => {
                    let kind = &self.wanted.kind;
                    let rest = said.clone().without(|own| own == kind);
                    let follows = rest.says(&list.clone().without(|own| own == kind));
                    if follows { Cause::Changed } else { Cause::Followed }
                }
            };
            self.write_own(&name, there, whole.text(), cause);
        }
        if !is_list(&base.name) {
            self.words.push(format!("{} is a single plugin's: {name} has it in a list", base.name));
        }
        Ok(State::Installed { file: name })
    }

    fn drop_in(&mut self, list: &List, entry: &Entry) -> Result<State, State> {
        if list.refuses_drop_ins() {
            return Err(self.refused(format!(
                "the list of {} has loadOnlyInlinedPlugins: its drop-in directory is not read",
                list.name
            )));
        }
        if !is_file_name(&list.name) {
            return Err(self.refused(format!(
                "the list's name {:?} is no name of a folder, so that it can have no drop-in directory: \
                 choose another mode (--mode)",
                list.name
            )));
        }
        let name = self.own_name(Mode::DropIn);
        let seen = self.seen;
        let is_it = |there: &&DropIn| there.network == list.name && there.file == name;
        let there = seen.drop_ins.iter().find(is_it);
        if there.is_some_and(|there| !there.is_own) {
            return Err(self.refused(format!(
                "{}/{name} is there already, and is not the agent's: choose another name \
                 (--conf-file), or remove it",
                list.name
            )));
        }
        let said = there.and_then(|own| own.entry.as_ref());
        if !said.is_some_and(|said| said.says(entry)) {
            let cause = if there.is_some() { Cause::Changed } else { Cause::Missing };
            let (network, text) = (list.name.clone(), format!("{}\n", entry.text()));
            self.steps.push(Step::WriteDropIn { network, text, cause });
        }
        Ok(State::Installed { file: format!("{}/{name}", list.name) })
    }

    fn standalone(&mut self) -> Result<State, State> {
        let name = self.own_name(Mode::Standalone);
        let seen = self.seen;
        let there = seen.files.iter().find(|file| file.name == name);
        let is_own = there.is_some_and(|file| self.is_own(file));
        let foreign = there.filter(|_| !is_own);
        let mut taken = Vec::new();
        for (mesh, entry) in
            foreign.iter().filter_map(|file| file.list.as_ref().ok()).flat_map(of_meshes)
        {
            if !self.is_taken(entry.kind()) {
                self.leave(mesh)?;
                continue;
            }
            let found =
                mesh.take(entry, self.wanted.settings.enrols()).map_err(|why| self.block(&why))?;
            self.lost.extend(found.words.iter().map(|word| format!("{mesh}: {word}")));
            taken.push((mesh, found.settings));
        }
        let others = seen.files.iter().filter(|file| file.name != name).filter_map(|file| {
            let (mesh, _) = of_meshes(file.list.as_ref().ok()?).next()?;
            Some(format!("{mesh} has {}, which is left alone", file.name))
        });
        self.words.extend(others);
        let entry = self.entry(&taken)?;
        let stem = name.strip_suffix(".conf").unwrap_or(&name);
        let quoted = serde_json::Value::String(stem.to_owned());
        let rest = entry.text().strip_prefix('{').unwrap_or_default();
        let text = format!("{{\"cniVersion\":\"1.0.0\",\"name\":{quoted},{rest}\n");
        if let Some(foreign) = foreign {
            self.keep_file(foreign, &taken)?;
            self.write_own(&name, there, text, Cause::TakenOver);
        } else if there.is_none_or(|file| file.text != text) {
            let cause = if there.is_some() { Cause::Changed } else { Cause::Missing };
            self.write_own(&name, there, text, cause);
        }
        // What is left of another mode.
        let mut rest = withdraw(seen, &self.wanted.kind, &self.wanted.own);
        rest.retain(|step| !matches!(step, Step::Remove { file } if *file == name));
        self.steps.append(&mut rest);
        Ok(State::Installed { file: name })
    }

    fn cause(&self, list: &List, entry: &Entry, taken: &[(Mesh, Settings)]) -> Cause {
        let places = list.places(|kind| kind == self.wanted.kind);
        let says = |number: &usize| list.plugins[*number].says(entry);
        match places.as_slice() {
            _ if list.plugins.iter().any(|entry| {
                Mesh::of(entry.kind()).is_some_and(|mesh| taken.iter().any(|(own, _)| *own == mesh))
            }) =>
            {
                Cause::TakenOver
            }
            [] => Cause::Missing,
            [one] if !says(one) => Cause::Changed,
            _ => Cause::Moved,
        }
    }
}
