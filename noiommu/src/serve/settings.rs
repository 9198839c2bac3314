//! What shall be served, as the environment of a program says it.

use noiommu_core::vfio::config::{Container, Interfaces, Options};

use crate::{Error, Result};

/// The variable that makes the preload library serve.
///
/// Words separated by commas: the provider (`auto`, or `1`; `sim`), `verbose`, `device=BDF` for each device to serve where
/// not all shall be, and `no-group` or `no-cdev` to leave out groups with their container, or device nodes. Unset, empty or `0`: the library does nothing.
pub const VARIABLE: &str = "NOIOMMU_SERVE";

/// Which kind of devices is served.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Provider {
    /// Real devices, by the best way there is to reach them.
    #[default]
    Auto,
    /// Simulated devices on simulated physical memory: nothing unsafe, no privilege needed.
    Sim,
}

/// The words of [`VARIABLE`], understood.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Settings {
    /// Which kind of devices.
    pub provider: Provider,
    /// The PCI addresses of the devices to serve; empty for all that can be.
    pub devices: Vec<String>,
    /// Whether to say when nothing is served, too.
    pub verbose: bool,
    /// Whether to leave out groups and the container.
    pub no_group: bool,
    /// Whether to leave out the devices' own nodes.
    pub no_cdev: bool,
}

impl Settings {
    /// The settings that `value` asks for; `None` when it asks for nothing.
    ///
    /// # Errors
    /// A word that means nothing, in a sentence.
    pub fn parse(value: &str) -> std::result::Result<Option<Self>, String> {
        let mut settings = Self::default();
        let words = value.split(',').map(str::trim).filter(|word| !word.is_empty());
        let mut asked = false;
        for word in words {
            match word.split_once('=') {
                None if word == "0" => return Ok(None),
                None if word == "1" || word == "auto" => settings.provider = Provider::Auto,
                None if word == "sim" => settings.provider = Provider::Sim,
                None if word == "verbose" => settings.verbose = true,
                None if word == "no-group" => settings.no_group = true,
                None if word == "no-cdev" => settings.no_cdev = true,
                Some(("device", address)) if !address.is_empty() => settings.devices.push(address.to_owned()),
                _ => {
                    return Err(format!(
                        "{VARIABLE}: {word:?} is none of auto, sim, verbose, device=BDF, no-group, no-cdev"
                    ));
                }
            }
            asked = true;
        }
        Ok(asked.then_some(settings))
    }

    /// The interfaces that shall be there: as Linux 7.3 has them with everything on, less what was left out.
    ///
    /// # Errors
    /// [`ErrorKind::Argument`](crate::ErrorKind::Argument): options that do not go together.
    pub fn interfaces(&self) -> Result<Interfaces> {
        let container = (!self.no_group).then_some(Container::Vfio);
        let options = Options::merged(!self.no_group, container, !self.no_cdev, false);
        options.interfaces().map_err(|error| {
            Error::argument(format!("these interfaces cannot be served: {error}")).with_remedy(error.remedy())
        })
    }
}

impl std::fmt::Display for Settings {
    /// The value of [`VARIABLE`] that means these settings.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.provider {
            Provider::Auto => "auto",
            Provider::Sim => "sim",
        })?;
        let words = [(self.verbose, ",verbose"), (self.no_group, ",no-group"), (self.no_cdev, ",no-cdev")];
        words.iter().filter(|(given, _)| *given).try_for_each(|(_, word)| f.write_str(word))?;
        self.devices.iter().try_for_each(|device| write!(f, ",device={device}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words() {
        for nothing in ["", "0", " , ", "0,verbose"] {
            assert_eq!(Settings::parse(nothing), Ok(None), "{nothing:?}");
        }
        for auto in ["1", "auto", " auto ,"] {
            assert_eq!(Settings::parse(auto), Ok(Some(Settings::default())), "{auto:?}");
        }
        let all = Settings {
            provider: Provider::Sim,
            devices: vec!["0000:00:04.0".to_owned(), "0000:00:05.0".to_owned()],
            verbose: true,
            no_group: true,
            no_cdev: false,
        };
        assert_eq!(
            Settings::parse("sim,device=0000:00:04.0,verbose,no-group,device=0000:00:05.0"),
            Ok(Some(all.clone()))
        );
        assert_eq!(Settings::parse(&all.to_string()), Ok(Some(all)));
        for wrong in ["yes", "device=", "device", "sim,x=1"] {
            assert!(Settings::parse(wrong).is_err(), "{wrong}");
        }
    }
}
