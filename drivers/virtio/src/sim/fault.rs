//! What a device can be told to do wrongly.

/// What becomes of the next request, or of the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Fault {
    /// Nothing: it is done as it should be.
    None,
    /// It is done after the next one.
    Late,
    /// It is never answered.
    Silence,
    /// It is answered with this status, and not done.
    Status(u8),
    /// It is answered and not done: nothing of its memory is written, the status neither.
    Nothing,
    /// It is done, and answered with another number: its own, with these bits changed.
    WrongId(u32),
    /// It is done and answered, and answered once more.
    Twice,
    /// It is done, and said to have written so many bytes.
    Length(u32),
    /// It is done, and so many more are said to be done.
    Jump(u16),
    /// The device fails: it says so, and does nothing any more.
    Fail,
}

/// What a device says of itself that is not so.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Lie {
    /// Other features: those that it has, with these bits changed.
    Features(u64),
    /// It does not agree to any features.
    Disagrees,
    /// Its queues have so many descriptors.
    QueueSize(u16),
    /// Its queues are in use from the start.
    Enabled,
    /// Its queues are notified there, in units of the multiplier.
    NotifyOffset(u16),
    /// The multiplier.
    Multiplier(u32),
    /// The structure of this kind (1 to 4) is there, with so many bytes.
    Structure(u8, u32, u32),
    /// Its configuration changes whenever it is read.
    Changing,
    /// It is never reset.
    Running,
    /// It wants no notifications, and does not look by itself.
    Deaf,
}
