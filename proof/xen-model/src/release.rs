//! Which Xen is modelled: release and build flavour, and what depends on them.
//!
//! Between Xen 4.4 and 4.20 the rules of PV memory management changed little; the layout of two
//! words and the wording of the log changed a lot. Everything of that kind is decided here.

/// A release of Xen. Each stands for its last point release unless its doc says otherwise.
///
/// 4.14 to 4.20 are compared with real Xen, log lines included. Of the older ones the model has
/// the layout of words and the old wordings of types, owners and validation; lines about grants
/// read as from 4.10 on, and rules are those of 4.14.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Release {
    /// Xen 4.4: log lines name the domain but no vCPU.
    V4_4,
    /// Xen 4.6: the first whose release builds print no debug lines.
    V4_6,
    /// Xen 4.9: the last with a 4-bit type field.
    V4_9,
    /// Xen 4.14 (4.14.6).
    V4_14,
    /// Xen 4.17 (4.17.7).
    V4_17,
    /// Xen 4.20 (4.20.4).
    V4_20,
}

/// How `type_info` is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layout {
    /// Type in bits 63:60, as up to Xen 4.9.
    Legacy4bit,
    /// Type in bits 63:61, as from Xen 4.10 on.
    Modern3bit,
}

/// How the hypervisor was compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Flavour {
    /// As distributions ship it (`NDEBUG`).
    Release,
    /// With debug lines, argument clobbering and checks of grant entries.
    Debug,
}

/// What kind of domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// The first domain, which may map devices and act for others.
    Dom0,
    /// An ordinary guest, as `xl create` makes it.
    DomU,
}

impl Release {
    /// How this release lays out `type_info`.
    #[must_use]
    pub const fn layout(self) -> Layout {
        match self {
            Self::V4_4 | Self::V4_6 | Self::V4_9 => Layout::Legacy4bit,
            Self::V4_14 | Self::V4_17 | Self::V4_20 => Layout::Modern3bit,
        }
    }

    /// Major and minor number, as `XENVER_version` answers them: `major << 16 | minor`.
    #[must_use]
    pub const fn version(self) -> u32 {
        let minor = match self {
            Self::V4_4 => 4,
            Self::V4_6 => 6,
            Self::V4_9 => 9,
            Self::V4_14 => 14,
            Self::V4_17 => 17,
            Self::V4_20 => 20,
        };
        4 << 16 | minor
    }

    /// Returns whether this release comes before `other`.
    pub(crate) fn before(self, other: Self) -> bool {
        self < other
    }

    /// Feature word 0 of a domU without assists (`XENVER_get_features`).
    pub(crate) const fn features(self) -> u32 {
        match self {
            Self::V4_4 | Self::V4_6 | Self::V4_9 => 0xe0,
            Self::V4_14 => 0x20e0,
            Self::V4_17 => 0x2_20e0,
            Self::V4_20 => 0x1e_20e0,
        }
    }
}
