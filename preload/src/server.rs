//! The seam to the engine: what is served, and how one of its nodes is opened.

use noiommu::Errno;
use noiommu::serve::{File, Node, Server, Settings};

/// Who answers for the nodes.
pub trait Serve: Send + Sync {
    /// What serves, in a few words, for the line on standard error.
    fn provider(&self) -> String;

    /// The nodes; none where the kernel has the real ones. They stay the same from the first call on.
    fn nodes(&self) -> Vec<Node>;

    /// Opens a node. `flags` are those of `open`.
    ///
    /// # Errors
    /// The kernel's for this node.
    fn open(&self, node: &Node, flags: i32) -> Result<File, Errno>;
}

/// Starts a server; an error is a sentence for the one who asked to be served.
pub type Start = fn(&Settings) -> Result<Box<dyn Serve>, String>;

/// What serves when nothing can.
pub(crate) struct Nothing;

impl Serve for Nothing {
    fn provider(&self) -> String {
        "nothing is served".to_owned()
    }

    fn nodes(&self) -> Vec<Node> {
        Vec::new()
    }

    fn open(&self, _: &Node, _: i32) -> Result<File, Errno> {
        Err(Errno::ENODEV)
    }
}

impl Serve for Server {
    fn provider(&self) -> String {
        self.provider().to_owned()
    }

    fn nodes(&self) -> Vec<Node> {
        self.nodes().to_vec()
    }

    fn open(&self, node: &Node, _: i32) -> Result<File, Errno> {
        // Which way a node is opened for does not matter to any of them.
        self.open(node)
    }
}

/// The engine.
pub(crate) fn start(settings: &Settings) -> Result<Box<dyn Serve>, String> {
    match Server::start(settings) {
        Ok(server) => Ok(Box::new(server)),
        Err(error) => Err(error.to_string()),
    }
}
