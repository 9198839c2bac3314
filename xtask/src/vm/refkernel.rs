//! Kernels built from the distribution's source: the reference, which has VFIO no-IOMMU over iommufd, and variants of it
//! with fewer interfaces.
//!
//! All variants come out of one source tree and one object tree, one after the other: only what names a changed symbol is
//! compiled again (for VFIO_GROUP a handful of files, for IOMMUFD, which is in a header of the scheduler, two thirds). They
//! go into the cache together, under a name that tells what they were made from.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use rustix::fs::FlockOperation;
use sha2::{Digest, Sha256};

use super::apt::{self, Apt, Package};
use super::kconfig::Config;
use super::kernel::{self, Kernel};
use super::witness::to_hex;
use crate::command;
use crate::project::Project;
use crate::ui::Work;

/// The package with the source, and the suite that has it.
const SOURCE: (&str, &str) = ("linux-source-7.3", "trixie-backports");

/// What a kernel build needs of the host.
const HOST_PACKAGES: [&str; 14] = [
    "bc",
    "binutils",
    "bison",
    "cpio",
    "flex",
    "gcc",
    "kmod",
    "libc6-dev",
    "libelf-dev",
    "libssl-dev",
    "make",
    "perl",
    "rsync",
    "xz-utils",
];

/// What make is told before a fragment is laid over it, afterwards, and to get the image.
const TARGETS: [&str; 3] = ["tinyconfig", "olddefconfig", "bzImage"];

/// Variables of the build's environment: an image tells neither who built it nor when.
const ENVIRONMENT: [(&str, &str); 3] = [
    ("KBUILD_BUILD_TIMESTAMP", "Thu Jan  1 00:00:00 UTC 1970"),
    ("KBUILD_BUILD_USER", "noiommu"),
    ("KBUILD_BUILD_HOST", "noiommu"),
];

/// Where an x86 build leaves its image, below the object tree.
const IMAGE: &str = "arch/x86/boot/bzImage";

/// Which interfaces a kernel has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Variant {
    /// Group, container and cdev, all with no-IOMMU mode
    Reference,
    /// Group no-IOMMU only: no iommufd, no cdev
    Legacy,
    /// The cdev only: no group, no container
    CdevOnly,
}

impl Variant {
    /// All, in the order in which they are built: the cheaper the step from one to the next, the earlier.
    const ALL: [Self; 3] = [Self::Reference, Self::CdevOnly, Self::Legacy];

    /// Its name: of its fragment, of its directory in the cache, on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Reference => "reference",
            Self::Legacy => "legacy",
            Self::CdevOnly => "cdev-only",
        }
    }

    /// About how many lines make says for it, in its turn. Only the length of a bar depends on it.
    fn lines(self) -> u64 {
        match self {
            Self::Reference => 2150,
            Self::CdevOnly => 130,
            Self::Legacy => 1250,
        }
    }
}

/// The kernel of a variant, from the cache or built now, in which case all variants are.
pub(crate) fn get(project: &Project, variant: Variant) -> Result<Kernel> {
    let (name, suite) = SOURCE;
    let fragments = Fragments::read(project)?;
    let found = kernel::with_lists(project, Some(suite), |apt| prepare(project, apt, &fragments))?;
    let place = found.with_context(|| format!("suite {suite} has no {name}"))?;
    if let Place { lock: Some(_), .. } = &place {
        build(&place, &fragments)?;
    }
    let dir = place.home.join(variant.name());
    Ok(Kernel {
        release: fs::read_to_string(dir.join("release"))?.trim().to_owned(),
        image: dir.join("bzImage"),
        modules: None,
        origin: format!("{} ({name} {})", variant.name(), place.package.version),
    })
}

/// What the project asks of Kconfig.
struct Fragments {
    /// The text of all, which is part of what names a build.
    text: String,
    /// What each variant wants, in the order of [`Variant::ALL`].
    wanted: Vec<(Variant, Config)>,
}

impl Fragments {
    fn read(project: &Project) -> Result<Self> {
        let mut text = String::new();
        let mut parse = |name: &str| {
            let path = project.root.join("xtask/guest/kernel").join(format!("{name}.fragment"));
            let read = fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?;
            text.push_str(&read);
            Config::parse(&read).with_context(|| format!("{}", path.display()))
        };
        let base = parse("config")?;
        let wanted = Variant::ALL
            .into_iter()
            .map(|variant| Ok((variant, base.with(&parse(variant.name())?))))
            .collect::<Result<_>>()?;
        Ok(Self { text, wanted })
    }
}

/// Where the kernels are, or are about to be.
struct Place {
    package: Package,
    /// The finished kernels' directory.
    home: PathBuf,
    /// Held while they are not finished: the right to build them. Freed by the file's end of life.
    lock: Option<File>,
    /// The build's own directory, with the package's .deb in it.
    scratch: PathBuf,
}

/// Looks whether the kernels are there; if not, becomes the one who builds them, and downloads the source.
fn prepare(project: &Project, apt: &Apt, fragments: &Fragments) -> Result<Option<Place>> {
    let Some(package) = apt.candidate(SOURCE.0)? else { return Ok(None) };
    let mut hash = Sha256::new();
    for part in [&package.sha256, &fragments.text, &format!("{TARGETS:?} {ENVIRONMENT:?}")] {
        hash.update(part);
        hash.update([0]);
    }
    let home = format!("linux-{}-{}", package.version, &to_hex(&hash.finalize())[..16]);
    let home = project.cache.join("kernels").join(home);
    let scratch = sibling(&home, "partial");
    let mut place = Place { package, home, lock: None, scratch };
    if place.home.is_dir() {
        return Ok(Some(place));
    }
    fs::create_dir_all(place.home.parent().unwrap_or(&place.home))?;
    place.lock = Some(lock(&sibling(&place.home, "lock"))?);
    // Whoever had the lock before has left them there, or half of them in the scratch directory.
    if place.home.is_dir() {
        place.lock = None;
        return Ok(Some(place));
    }
    let _ = fs::remove_dir_all(&place.scratch);
    let download = place.scratch.join("download");
    fs::create_dir_all(&download)?;
    let deb = apt.download(&place.package, &download)?;
    let hash = kernel::sha256(&deb)?;
    ensure!(hash == place.package.sha256, "{} has SHA-256 {hash}", deb.display());
    fs::rename(&deb, place.scratch.join("source.deb"))?;
    Ok(Some(place))
}

/// A path beside `home`. Versions have dots, so that `with_extension` would cut them.
fn sibling(home: &Path, what: &str) -> PathBuf {
    let mut name = home.as_os_str().to_owned();
    name.push(format!(".{what}"));
    PathBuf::from(name)
}

/// Waits until nobody else builds the same: two builds at once would take twice as long each.
fn lock(path: &Path) -> Result<File> {
    let file = File::create(path).with_context(|| format!("{}", path.display()))?;
    if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        let work = Work::start("waiting for another build of the same kernels");
        rustix::fs::flock(&file, FlockOperation::LockExclusive).context("waiting for another build")?;
        work.finish();
    }
    Ok(file)
}

/// Builds all variants and moves them to their place together.
fn build(place: &Place, fragments: &Fragments) -> Result<()> {
    apt::install(&HOST_PACKAGES)?;
    let built = (|| {
        let source = unpack(&place.scratch)?;
        let (objects, out) = (place.scratch.join("objects"), place.scratch.join("out"));
        fs::create_dir_all(&objects)?;
        for (variant, wanted) in &fragments.wanted {
            let dir = out.join(variant.name());
            fs::create_dir_all(&dir)?;
            compile(&source, &objects, *variant, wanted)
                .with_context(|| format!("building the {} kernel", variant.name()))?;
            fs::copy(objects.join(IMAGE), dir.join("bzImage"))?;
            fs::copy(objects.join(".config"), dir.join("config"))?;
            fs::copy(objects.join("include/config/kernel.release"), dir.join("release"))?;
        }
        fs::rename(&out, &place.home).context("moving the kernels to their place")
    })();
    let _ = fs::remove_dir_all(&place.scratch);
    built
}

/// Unpacks the package, then the archive in it, and answers the source tree.
fn unpack(scratch: &Path) -> Result<PathBuf> {
    let work = Work::start("unpacking the kernel's source");
    let (package, tree) = (scratch.join("package"), scratch.join("source"));
    let deb = scratch.join("source.deb");
    command::output(Command::new("dpkg-deb").arg("--extract").args([&deb, &package]))?;
    fs::create_dir_all(&tree)?;
    let archive = package.join("usr/src").join(format!("{}.tar.xz", SOURCE.0));
    command::output(
        Command::new("tar")
            .arg("--extract")
            .arg("--strip-components=1")
            .arg("--directory")
            .arg(&tree)
            .arg("--file")
            .arg(&archive),
    )?;
    fs::remove_dir_all(&package)?;
    fs::remove_file(&deb)?;
    work.finish();
    Ok(tree)
}

/// Configures and compiles one variant in an object tree that may hold another one's objects.
fn compile(source: &Path, objects: &Path, variant: Variant, wanted: &Config) -> Result<()> {
    let make = |target: &str| {
        let mut make = Command::new("make");
        make.current_dir(source).arg(format!("O={}", objects.display())).arg(target);
        // Whatever calls us may itself have been called by a make, or be set up for another kernel.
        for variable in ["MAKEFLAGS", "MFLAGS", "MAKELEVEL", "ARCH", "CROSS_COMPILE", "KCONFIG_CONFIG"] {
            make.env_remove(variable);
        }
        make.envs(ENVIRONMENT).env("LC_ALL", "C").stdin(Stdio::null());
        make
    };
    let [base, complete, image] = TARGETS;
    let file = objects.join(".config");
    let config = || Config::parse(&fs::read_to_string(&file)?);
    command::output(&mut make(base))?;
    fs::write(&file, config()?.with(wanted).render())?;
    command::output(&mut make(complete))?;
    let lacking = config()?.lacks(wanted);
    ensure!(lacking.is_empty(), "Kconfig did not grant:\n  {}", lacking.join("\n  "));

    let jobs = thread::available_parallelism().map_or(1, usize::from);
    let work = Work::lines(format!("compiling the {} kernel", variant.name()), variant.lines());
    run(make(image).arg(format!("-j{jobs}")), &work)?;
    work.finish();
    Ok(())
}

/// Runs `command` and counts the lines that it says; an error carries the last ones.
fn run(command: &mut Command, work: &Work) -> Result<()> {
    /// More than elsewhere, since other jobs go on for a while after the one that failed.
    const TAIL: usize = 40;
    let line = command::describe(command);
    let (reader, writer) = io::pipe()?;
    let mut child =
        command.stdout(writer.try_clone()?).stderr(writer).spawn().with_context(|| line.clone())?;
    // The command keeps copies of the pipe's other end, which would never seem closed.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut last = std::collections::VecDeque::new();
    for (count, said) in (1..).zip(BufReader::new(reader).split(b'\n')) {
        last.push_back(String::from_utf8_lossy(&said?).into_owned());
        if last.len() > TAIL {
            last.pop_front();
        }
        work.set_position(count);
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("`{line}` failed ({status}):\n{}", Vec::from(last).join("\n"));
    }
    Ok(())
}
