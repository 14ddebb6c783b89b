//! A guest that calls Xen with raw words, as the tests of the numbered assertions need it.

use hypercall::{Mfn, Pfn};
use xen_model::{
    BootMapping, Builder, DomainConfig, Flavour, Mode, Model, Release, Role, Vcpu, number, text_of,
};

/// Pages set aside for lists, counts and structures.
const SCRATCH: u64 = 8;

pub(crate) const P: u64 = 1;
pub(crate) const RW: u64 = 3;
pub(crate) const SELF: u64 = 0x7ff0;
pub(crate) const IO: u64 = 0x7ff1;
pub(crate) const UNTOUCHED: u32 = 0x5555_5555;

pub(crate) const EPERM: i64 = -1;
pub(crate) const ESRCH: i64 = -3;
pub(crate) const EBUSY: i64 = -16;
pub(crate) const EINVAL: i64 = -22;

pub(crate) const PIN_L1: u64 = 0;
pub(crate) const PIN_L4: u64 = 3;
pub(crate) const UNPIN: u64 = 4;
pub(crate) const BASEPTR: u64 = 5;
pub(crate) const USER_BASEPTR: u64 = 15;

pub(crate) struct Bench {
    pub(crate) model: Model,
}

impl Bench {
    /// An ordinary domU d1 beside a dom0, on a debug build of 4.17, with all its pages mapped.
    pub(crate) fn new() -> Self {
        Self::of(Self::builder())
    }

    pub(crate) fn builder() -> Builder {
        let all = BootMapping::AllPages;
        let dom0 = DomainConfig { boot_mapping: all, ..DomainConfig::new(Role::Dom0, 1024) };
        Model::builder().pages(2048).boot_mapping(all).seed(7).other(dom0)
    }

    pub(crate) fn of(builder: Builder) -> Self {
        Self { model: builder.build().expect("a machine") }
    }

    pub(crate) fn release_build() -> Self {
        Self::of(Self::builder().flavour(Flavour::Release))
    }

    pub(crate) fn on(release: Release) -> Self {
        Self::of(Self::builder().release(release))
    }

    pub(crate) fn dom0() -> Self {
        Self::of(Self::dom0_builder())
    }

    pub(crate) fn dom0_builder() -> Builder {
        let all = BootMapping::AllPages;
        let domu = DomainConfig { boot_mapping: all, ..DomainConfig::new(Role::DomU, 1024) };
        Model::builder().pages(2048).role(Role::Dom0).boot_mapping(all).seed(7).other(domu)
    }

    pub(crate) fn guest(&self) -> Vcpu<'_> {
        self.model.guest()
    }

    /// Page `k` of those that are nothing yet.
    pub(crate) fn pfn(&self, k: u64) -> u64 {
        self.guest().first_free_page().raw() + SCRATCH + k
    }

    pub(crate) fn mfn(&self, k: u64) -> u64 {
        self.guest().built_mfn(Pfn::new(self.pfn(k))).expect("a page").raw()
    }

    pub(crate) fn va_of_pfn(pfn: u64) -> u64 {
        0xffff_ffff_8000_0000 + (pfn << 12)
    }

    pub(crate) fn va(&self, k: u64) -> u64 {
        Self::va_of_pfn(self.pfn(k))
    }

    /// Scratch page `k` as an address.
    pub(crate) fn scratch(&self, k: u64) -> u64 {
        Self::va_of_pfn(self.guest().first_free_page().raw() + k)
    }

    /// Machine address of the entry that maps page `k`.
    pub(crate) fn slot(&self, k: u64) -> u64 {
        self.slot_at(self.va(k))
    }

    pub(crate) fn slot_at(&self, va: u64) -> u64 {
        self.guest().l1_slot(va).expect("mapped").0.machine_address()
    }

    /// A frame of the other domain.
    pub(crate) fn foreign(&self) -> u64 {
        let (id, pfn) = if self.guest().domain() == 0 { (1, 700) } else { (0, 700) };
        self.model.vcpu(id, 0).expect("other").built_mfn(Pfn::new(pfn)).expect("page").raw()
    }

    pub(crate) fn put(&self, va: u64, words: &[u64]) {
        for (k, word) in words.iter().enumerate() {
            let at = va + k as u64 * 8;
            self.guest().store(at, &word.to_le_bytes(), Mode::Kernel).expect("scratch");
        }
    }

    pub(crate) fn word_at(&self, va: u64) -> u64 {
        let mut bytes = [0; 8];
        self.guest().load(va, &mut bytes, Mode::Kernel).expect("mapped");
        u64::from_le_bytes(bytes)
    }

    pub(crate) fn call(&self, number: u64, arguments: [u64; 5]) -> i64 {
        self.guest().hypercall(number, arguments)
    }

    /// Result and done count of a batch hypercall with `list` in scratch page 0.
    fn batch(&self, number: u64, words: &[u64], count: usize, foreign: u64) -> (i64, u32) {
        let (list, done) = (self.scratch(0), self.scratch(2));
        self.put(list, words);
        self.put(done, &[u64::from(UNTOUCHED)]);
        let result = self.call(number, [list, count as u64, done, foreign, 0]);
        (result, (self.word_at(done) & 0xffff_ffff) as u32)
    }

    pub(crate) fn mmu_for(&self, list: &[(u64, u64)], foreign: u64) -> (i64, u32) {
        let words: Vec<u64> = list.iter().flat_map(|(target, value)| [*target, *value]).collect();
        self.batch(number::MMU_UPDATE, &words, list.len(), foreign)
    }

    pub(crate) fn mmu(&self, list: &[(u64, u64)]) -> (i64, u32) {
        self.mmu_for(list, SELF)
    }

    pub(crate) fn ext_for(&self, list: &[(u64, u64, u64)], foreign: u64) -> (i64, u32) {
        let words: Vec<u64> = list.iter().flat_map(|(c, a, b)| [*c, *a, *b]).collect();
        self.batch(number::MMUEXT_OP, &words, list.len(), foreign)
    }

    pub(crate) fn ext(&self, command: u64, argument: u64) -> i64 {
        self.ext_for(&[(command, argument, 0)], SELF).0
    }

    /// Sets the entry that maps page `k` to these flags, and flushes.
    pub(crate) fn map(&self, k: u64, flags: u64) -> i64 {
        let entry = if flags == 0 { 0 } else { self.mfn(k) << 12 | flags };
        let result = self.mmu(&[(self.slot(k), entry)]).0;
        self.ext(10, 0);
        result
    }

    pub(crate) fn read_only(&self, k: u64) {
        assert_eq!(self.map(k, P), 0);
    }

    pub(crate) fn unmap(&self, k: u64) {
        assert_eq!(self.map(k, 0), 0);
    }

    /// Makes page `k` read-only with these contents.
    pub(crate) fn contents(&self, k: u64, words: &[(usize, u64)]) {
        self.read_only(k);
        for (index, word) in words {
            self.model.poke(Mfn::new(self.mfn(k)), *index, *word);
        }
    }

    /// Makes page `k` a pinned table.
    pub(crate) fn pinned(&self, k: u64, level: u64, words: &[(usize, u64)]) {
        self.contents(k, words);
        assert_eq!(self.ext(level - 1, self.mfn(k)), 0, "{:?}", self.log());
        self.clear_log();
    }

    /// Machine address of entry `index` of page `k`.
    pub(crate) fn at(&self, k: u64, index: u64) -> u64 {
        (self.mfn(k) << 12) | (index * 8)
    }

    /// Sets entry `index` of the table in page `k`.
    pub(crate) fn set(&self, k: u64, index: u64, value: u64) -> i64 {
        self.mmu(&[(self.at(k, index), value)]).0
    }

    pub(crate) fn entry(&self, k: u64, index: usize) -> u64 {
        self.model.word(Mfn::new(self.mfn(k)), index).expect("RAM")
    }

    /// An entry for page `k`.
    pub(crate) fn to(&self, k: u64, flags: u64) -> u64 {
        self.mfn(k) << 12 | flags
    }

    /// `count_info` and `type_info` of any frame.
    pub(crate) fn words(&self, mfn: u64) -> (u64, u64) {
        self.model.frame(Mfn::new(mfn)).expect("RAM").words(self.model.release())
    }

    pub(crate) fn caf(&self, k: u64) -> u64 {
        self.words(self.mfn(k)).0
    }

    pub(crate) fn taf(&self, k: u64) -> u64 {
        self.words(self.mfn(k)).1
    }

    pub(crate) fn m2p(&self, mfn: u64) -> u64 {
        self.model.frame(Mfn::new(mfn)).expect("RAM").m2p
    }

    pub(crate) fn clear_log(&self) {
        let _ = self.model.take_log();
    }

    /// The lines since the last look, without prefixes.
    pub(crate) fn log(&self) -> Vec<String> {
        self.model.take_log().iter().map(|line| text_of(line).to_owned()).collect()
    }

    pub(crate) fn bad_type(&self, saw: u64, expected: u64, mfn: u64) -> String {
        let pfn = self.m2p(mfn);
        format!(
            "Bad type (saw {saw:016x} != exp {expected:016x}) for mfn {mfn:05x} (pfn {pfn:05x})"
        )
    }

    /// `memory_op` on a reservation whose list is in scratch page 1. Answers the result and the
    /// list.
    pub(crate) fn reserve(
        &self,
        command: u64,
        list: &[u64],
        order: u64,
        domain: u64,
    ) -> (i64, Vec<u64>) {
        let (argument, extents) = (self.scratch(0), self.scratch(4));
        self.put(extents, list);
        self.put(argument, &[extents, list.len() as u64, order, domain]);
        let result = self.call(number::MEMORY_OP, [command, argument, 0, 0, 0]);
        let list = (0..list.len() as u64).map(|k| self.word_at(extents + k * 8)).collect();
        (result, list)
    }

    pub(crate) fn populate(&self, pfns: &[u64]) -> Vec<u64> {
        let (result, list) = self.reserve(6, pfns, 0, SELF);
        assert_eq!(result, pfns.len() as i64);
        list
    }

    pub(crate) fn decrease(&self, mfns: &[u64]) -> i64 {
        self.reserve(1, mfns, 0, SELF).0
    }

    /// `memory_op` on words in scratch page 0. Answers the result and the words.
    pub(crate) fn memory<const N: usize>(&self, command: u64, words: [u64; N]) -> (i64, [u64; N]) {
        let argument = self.scratch(0);
        self.put(argument, &words);
        let result = self.call(number::MEMORY_OP, [command, argument, 0, 0, 0]);
        (result, core::array::from_fn(|k| self.word_at(argument + k as u64 * 8)))
    }

    pub(crate) fn total(&self) -> u64 {
        self.guest().total_pages()
    }

    pub(crate) fn audit(&self) {
        self.model.audit().expect("counts add up");
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.audit();
        }
    }
}
