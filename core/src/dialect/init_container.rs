//! An init container that captures its pod from inside: what its tool is told.

use crate::pod::{Container, Elsewhere, expand};

/// What an init container does can't be told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotStated {
    /// A value that matters is not in the manifest.
    #[error("init container {container}: {source}")]
    Elsewhere {
        /// The name of the init container.
        container: String,
        /// The variable whose value the manifest does not have.
        source: Elsewhere,
    },
    /// Its command line runs another program than the mesh's tool.
    #[error(
        "init container {container} runs {program:?}, which is not {tool}: what that writes is not \
         known"
    )]
    Program {
        /// The name of the init container.
        container: String,
        /// The first words of its command line, with spaces between.
        program: String,
        /// The name of the tool that it would have to run.
        tool: &'static str,
    },
}

/// The words behind a tool's name in a container's command line; the name is among so many words at the
/// beginning, or it is the program of the container's image.
pub(super) fn words(
    container: &Container,
    tools: &[&'static str],
    before: usize,
) -> Result<Vec<String>, NotStated> {
    let words = container.command.iter().chain(&container.args);
    let words: Vec<String> = words
        .map(|word| expand(word, container))
        .collect::<Result<_, _>>()
        .map_err(|source| NotStated::Elsewhere { container: container.name.clone(), source })?;
    let is_tool = |word: &String| tools.iter().any(|tool| word.rsplit('/').next() == Some(*tool));
    match words.iter().take(before).position(is_tool) {
        Some(at) => Ok(words[at + 1..].to_vec()),
        // The program is the image's own.
        None if container.command.is_empty()
            && words.first().is_none_or(|w| w.starts_with('-')) =>
        {
            Ok(words)
        }
        None => Err(NotStated::Program {
            container: container.name.clone(),
            program: words.into_iter().take(before).collect::<Vec<_>>().join(" "),
            tool: tools.first().copied().unwrap_or_default(),
        }),
    }
}
