//! What one driver writes, the other one reads: every byte of the namespace, both ways, for each provider.

use std::fs::File;
use std::io::Write as _;

use anyhow::{Context as _, Result, bail, ensure};
use noiommu::optin;
use serde_json::{Value, json};

use super::kernel::block_device;
use super::{ACCOUNTS, address, drive};
use crate::disk::kernel;
use crate::matrix::{bind, unbind};

/// Once through each provider. The short form is one way round: ours writes, the kernel's reads.
pub(super) fn run(form: &str, providers: &[&str]) -> Result<()> {
    let both = match form {
        "short" => false,
        "long" => true,
        _ => bail!("{form} is no form"),
    };
    ensure!(!providers.is_empty(), "no provider was named");
    optin::enable()?;
    let address = address()?;
    let mut accounts = File::create(ACCOUNTS).context(ACCOUNTS)?;
    for (provider, turn) in providers.iter().zip(1..) {
        let account = one(&address, provider, turn, both)?;
        println!("{account}");
        writeln!(accounts, "{account}").context(ACCOUNTS)?;
    }
    Ok(())
}

fn one(address: &str, provider: &str, turn: u64, both: bool) -> Result<Value> {
    let name = block_device(address)?;
    let size = kernel::size(&name)?;
    let (ours, theirs) = ((2 * turn) << 32, (2 * turn + 1) << 32);
    bind(address, provider)?;
    let wrote = drive(provider, "write", address, &[&ours.to_string()])?;
    unbind(address)?;
    let name = block_device(address)?;
    let verified = kernel::verify(&name, ours)?;
    let mut account = json!({
        "asked": provider, "size": size, "ours_wrote": wrote, "kernel_verified": verified,
    });
    if both {
        account["kernel_wrote"] = kernel::write(&name, theirs)?.into();
        bind(address, provider)?;
        account["ours_verified"] = drive(provider, "read", address, &[&theirs.to_string()])?;
        unbind(address)?;
        // The kernel has it again.
        block_device(address)?;
    }
    Ok(account)
}
