//! What shall be served, as the environment of a program says it.

/// The variable that makes the preload library serve.
///
/// Words separated by commas: the provider (`auto`, or `1`; `sim`), `verbose`, and `device=BDF` for each device to serve where
/// not all shall be. Unset, empty or `0`: the library does nothing.
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
}

impl Settings {
    /// The settings that `value` asks for; `None` when it asks for nothing.
    ///
    /// # Errors
    /// A word that means nothing, in a sentence.
    pub fn parse(value: &str) -> Result<Option<Self>, String> {
        let mut settings = Self::default();
        let words = value.split(',').map(str::trim).filter(|word| !word.is_empty());
        let mut asked = false;
        for word in words {
            match word.split_once('=') {
                None if word == "0" => return Ok(None),
                None if word == "1" || word == "auto" => settings.provider = Provider::Auto,
                None if word == "sim" => settings.provider = Provider::Sim,
                None if word == "verbose" => settings.verbose = true,
                Some(("device", address)) if !address.is_empty() => settings.devices.push(address.to_owned()),
                _ => {
                    return Err(format!("{VARIABLE}: {word:?} is none of auto, sim, verbose, device=BDF"));
                }
            }
            asked = true;
        }
        Ok(asked.then_some(settings))
    }
}

impl std::fmt::Display for Settings {
    /// The value of [`VARIABLE`] that means these settings.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.provider {
            Provider::Auto => "auto",
            Provider::Sim => "sim",
        })?;
        if self.verbose {
            f.write_str(",verbose")?;
        }
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
        };
        assert_eq!(
            Settings::parse("sim,device=0000:00:04.0,verbose,device=0000:00:05.0"),
            Ok(Some(all.clone()))
        );
        assert_eq!(Settings::parse(&all.to_string()), Ok(Some(all)));
        for wrong in ["yes", "device=", "device", "sim,x=1"] {
            assert!(Settings::parse(wrong).is_err(), "{wrong}");
        }
    }
}
