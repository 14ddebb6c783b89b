//! Who has which page, counted at the end of a test: each once, none forgotten.

use std::collections::BTreeMap;
use std::fmt;

use hypercall::{Pfn, Quarantine};

/// Pages that have to be found, and where they were found.
#[derive(Debug, Default)]
pub struct Account {
    holders: BTreeMap<Pfn, Vec<&'static str>>,
    strangers: BTreeMap<Pfn, &'static str>,
}

/// What is wrong with an account.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unbalanced {
    /// Pages that someone has a second time, with all who have them.
    pub twice: Vec<(Pfn, Vec<&'static str>)>,
    /// Pages that nobody has.
    pub missing: Vec<Pfn>,
    /// Pages that someone has and that are none of those to be found.
    pub strangers: Vec<(Pfn, &'static str)>,
}

impl Account {
    /// Every one of `pages` has to be found once.
    ///
    /// ```
    /// use hypercall::Pfn;
    /// use pv_tests::account::Account;
    ///
    /// let mut account = Account::of((1..4).map(Pfn::new));
    /// account.found("free", [Pfn::new(1), Pfn::new(2)]);
    /// account.found("mapped", [Pfn::new(2)]);
    /// let unbalanced = account.check().unwrap_err();
    /// assert_eq!(unbalanced.twice, [(Pfn::new(2), vec!["free", "mapped"])]);
    /// assert_eq!(unbalanced.missing, [Pfn::new(3)]);
    /// ```
    #[must_use]
    pub fn of(pages: impl IntoIterator<Item = Pfn>) -> Self {
        let holders = pages.into_iter().map(|pfn| (pfn, Vec::new())).collect();
        Self { holders, strangers: BTreeMap::new() }
    }

    /// `holder` has these pages.
    pub fn found(&mut self, holder: &'static str, pages: impl IntoIterator<Item = Pfn>) {
        for pfn in pages {
            match self.holders.get_mut(&pfn) {
                Some(holders) => holders.push(holder),
                None => _ = self.strangers.insert(pfn, holder),
            }
        }
    }

    /// `holder` has those of these pages that nobody else has.
    pub fn found_rest(&mut self, holder: &'static str, pages: impl IntoIterator<Item = Pfn>) {
        let is_missing = |pfn: &Pfn| self.holders.get(pfn).is_some_and(Vec::is_empty);
        let rest: Vec<_> = pages.into_iter().filter(is_missing).collect();
        self.found(holder, rest);
    }

    /// `holder` has `count` pages from `start` on.
    pub fn found_run(&mut self, holder: &'static str, start: Pfn, count: u64) {
        self.found(holder, (start.raw()..start.raw() + count).map(Pfn::new));
    }

    /// What is quarantined.
    ///
    /// # Panics
    /// If some of it is not listed: give it more places.
    pub fn found_quarantined(&mut self, quarantine: &Quarantine<'_>) {
        assert_eq!(quarantine.unlisted(), 0, "not all that is quarantined is listed");
        for run in quarantine.iter() {
            self.found_run("quarantined", run.start(), run.count());
        }
    }

    /// Says whether each page was found once, and no other.
    ///
    /// # Errors
    /// [`Unbalanced`], with every page that was not.
    pub fn check(&self) -> Result<(), Unbalanced> {
        let holders = || self.holders.iter();
        let twice = holders().filter(|(_, all)| all.len() > 1);
        let missing = holders().filter(|(_, all)| all.is_empty());
        let found = Unbalanced {
            twice: twice.map(|(pfn, all)| (*pfn, all.clone())).collect(),
            missing: missing.map(|(pfn, _)| *pfn).collect(),
            strangers: self.strangers.iter().map(|(pfn, holder)| (*pfn, *holder)).collect(),
        };
        if found == Unbalanced::default() { Ok(()) } else { Err(found) }
    }

    /// Checks it in a test.
    ///
    /// # Panics
    /// If a page was not found once, with all of them.
    pub fn assert_balanced(&self) {
        if let Err(unbalanced) = self.check() {
            panic!("{unbalanced}");
        }
    }
}

impl fmt::Display for Unbalanced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { twice, missing, strangers } = self;
        let mut parts = Vec::new();
        if !twice.is_empty() {
            parts.push(format!("{} pages have two owners: {twice:x?}", twice.len()));
        }
        if !missing.is_empty() {
            parts.push(format!("{} pages are lost: {missing:x?}", missing.len()));
        }
        if !strangers.is_empty() {
            parts.push(format!("{} pages were not given out: {strangers:x?}", strangers.len()));
        }
        f.write_str(&parts.join("; "))
    }
}

impl std::error::Error for Unbalanced {}
