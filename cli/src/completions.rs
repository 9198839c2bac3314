//! `noiommu completions`: what a shell needs to complete the words of this program.

use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::{CommandFactory as _, ValueEnum as _};
use clap_complete::Shell;

/// How it is called.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The package has them in place already. By hand:

  noiommu completions bash > ~/.local/share/bash-completion/completions/noiommu
  noiommu completions zsh > ~/.zfunc/_noiommu
  noiommu completions fish > ~/.config/fish/completions/noiommu.fish

Exit status: 0 printed, 1 it could not be written, 2 wrong usage.")]
pub(crate) struct Options {
    /// The shell
    #[arg(value_parser = shell)]
    shell: Shell,
}

/// The shells that are tested.
fn shell(name: &str) -> Result<Shell, String> {
    match Shell::from_str(name, false) {
        Ok(shell @ (Shell::Bash | Shell::Zsh | Shell::Fish)) => Ok(shell),
        _ => Err("one of bash, zsh, fish".to_owned()),
    }
}

/// Prints them.
pub(crate) fn run(options: &Options) -> ExitCode {
    let mut text = Vec::new();
    clap_complete::generate(options.shell, &mut crate::Cli::command(), "noiommu", &mut text);
    match io::stdout().write_all(&text).and_then(|()| io::stdout().flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let cause = format!("the completions could not be written: {error}");
            crate::tell_failure(
                false,
                &crate::Failure { kind: "System", errno: None, cause: &cause, remedy: None },
            )
        }
    }
}
