//! What a controller can be told to do wrongly.

/// What becomes of the next command of an I/O queue, or of the controller.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Fault {
    /// Nothing: it is done as it should be.
    None,
    /// It is done after all others that are there.
    Late,
    /// It is not done, and answered with this status code type and code.
    Status(u8, u8),
    /// It is never answered, but can be aborted.
    Silence,
    /// It is never answered, and cannot be aborted.
    Deaf,
    /// It is done, and answered with another identifier: its own, with these bits changed.
    WrongIdentifier(u16),
    /// It is done and answered, and answered once more.
    Twice,
    /// It is done, and answered as another queue's.
    WrongQueue(u16),
    /// It is done, and answered with a head that passes the end of the queue by so much.
    WrongHead(u16),
    /// The controller fails: it says so, and does nothing any more before it is reset.
    Fatal,
    /// The controller stands still: it does not say so, answers nothing, the admin queue included, and can be reset.
    Stall,
    /// The same, and it does not stop either.
    Stuck,
}
