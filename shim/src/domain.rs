//! Protection domains and registrations of the application, each with its twins on the standbys.
//!
//! Owns: which standby has all memory of a PD. A slot is the place of a device among the standbys of the primary, the same for every object.

use crate::process;
use crate::shadow::Raw;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, Ordering};
use shift_abi::*;
use shift_proto::id::MAX_STANDBYS;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard};

/// A PD of the application and its twins on the standbys.
pub struct PdShadow {
    /// Its device.
    pub device: u16,
    /// The twins that were made with it, the best first and at least one, or why there is none.
    pub standbys: Result<Vec<StandbyPd>, String>,
    /// Twins on standbys that came later.
    later: Mutex<Vec<StandbyPd>>,
    /// Slots that are no target yet, as bits: what was registered before is being registered there. Under `later`.
    growing: AtomicU8,
    /// Slots whose device is gone and was let go of, as bits. Set once, by who holds `registering`.
    gone: AtomicU8,
    /// Held for reading while a registration is made on all twins that there are; for writing none is under way. `true`: the PD is being freed.
    registering: RwLock<bool>,
    /// Slots on which some registration is not, as bits, though others have it.
    lost: AtomicU8,
    /// Some registration has no twin: posts have to look which they use. Set once, read on every post (Relaxed: it is set before the key exists).
    pub lacks_twins: AtomicBool,
    /// Why no QP of it can be protected: the peer can reach memory that no standby has, and does not say when it uses it.
    pub unprotected: OnceLock<&'static str>,
}

impl PdShadow {
    /// One without registrations.
    pub const fn new(device: u16, standbys: Result<Vec<StandbyPd>, String>) -> Self {
        Self {
            device,
            standbys,
            later: Mutex::new(Vec::new()),
            growing: AtomicU8::new(0),
            gone: AtomicU8::new(0),
            registering: RwLock::new(false),
            lost: AtomicU8::new(0),
            lacks_twins: AtomicBool::new(false),
            unprotected: OnceLock::new(),
        }
    }

    /// The twins that were made with it.
    pub fn twins(&self) -> &[StandbyPd] {
        self.standbys.as_deref().unwrap_or_default()
    }

    fn later(&self) -> MutexGuard<'_, Vec<StandbyPd>> {
        self.later.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All twins that are there.
    pub fn present(&self) -> Vec<StandbyPd> {
        let later = self.later();
        let all = self.twins().iter().copied().chain(later.iter().copied());
        all.filter(|twin| self.gone.load(Ordering::Acquire) & 1 << twin.slot == 0).collect()
    }

    /// Its twin in that slot, if it is there.
    pub fn twin(&self, slot: u8) -> Option<StandbyPd> {
        self.present().into_iter().find(|twin| twin.slot == slot)
    }

    /// It has, or had, a twin in that slot.
    pub fn knows(&self, slot: u8) -> bool {
        self.twins().iter().chain(self.later().iter()).any(|twin| twin.slot == slot)
    }

    /// All that is registered is on its twin in that slot, or the slot is lost.
    pub fn is_ready(&self, slot: u8) -> bool {
        self.growing.load(Ordering::Acquire) & 1 << slot == 0
    }

    /// Keeps twins from coming and going while one registration is made on all of them. A forked child has nobody who would add one.
    pub fn registering(&self) -> Option<RwLockReadGuard<'_, bool>> {
        (!process::is_child()).then(|| self.registering.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// From here on registrations are made there too, and those that are there already have to follow. `false`: it is being freed.
    pub fn grow(&self, twin: StandbyPd) -> bool {
        let is_freed = self.registering.write().unwrap_or_else(PoisonError::into_inner);
        if !*is_freed {
            self.growing.fetch_or(1 << twin.slot, Ordering::AcqRel);
            self.later().push(twin);
        }
        !*is_freed
    }

    /// What was registered before is there too.
    pub fn grown(&self, slot: u8) {
        self.growing.fetch_and(!(1 << slot), Ordering::AcqRel);
    }

    /// Nothing is registered in that slot any more; its twin is the caller's to free. `None`: it was taken out before.
    pub fn part(&self, slot: u8) -> Option<StandbyPd> {
        let _none = self.registering.write().unwrap_or_else(PoisonError::into_inner);
        let twin = self.twin(slot)?;
        self.gone.fetch_or(1 << slot, Ordering::AcqRel);
        Some(twin)
    }

    /// The application frees it, or it could not be freed: no twin is added meanwhile.
    pub fn set_freed(&self, freed: bool) {
        if !process::is_child() {
            *self.registering.write().unwrap_or_else(PoisonError::into_inner) = freed;
        }
    }

    /// All registrations that have a twin at all have one there.
    pub fn is_whole(&self, slot: u8) -> bool {
        self.lost.load(Ordering::Acquire) & (1 << slot) == 0
    }

    /// Some registration is not there. `false`: so it was before.
    pub fn lose(&self, slot: u8) -> bool {
        self.lost.fetch_or(1 << slot, Ordering::AcqRel) & (1 << slot) == 0
    }
}

/// A PD of this library's own.
#[derive(Clone, Copy)]
pub struct StandbyPd {
    /// Place of its device among the standbys of the primary.
    pub slot: u8,
    /// Device of the standby.
    pub device: u16,
    /// The PD.
    pub pd: Raw<ibv_pd>,
}

/// A registration of the application and its twins.
pub struct MrShadow {
    /// Its device.
    pub device: u16,
    /// The application's keys.
    pub lkey: u32,
    /// See `lkey`.
    pub rkey: u32,
    /// First address as the NIC sees it.
    pub iova: u64,
    /// Bytes.
    pub length: u64,
    /// The processor may read it at that address: its payload may be snapshotted.
    pub readable: bool,
    /// The twins that were made with it; empty if every standby refused it.
    pub twins: Vec<TwinMr>,
    /// Those that were made later, by slot.
    pub later: OnceLock<Box<[OnceLock<TwinMr>; MAX_STANDBYS]>>,
    /// Held while a twin is being made later. `true`: the registration is withdrawn.
    withdrawn: Mutex<bool>,
    /// First address as the application sees it.
    pub addr: usize,
    /// Access flags.
    pub access: u32,
    /// Its PD.
    pub pd: Raw<ibv_pd>,
    /// The memory is another device's.
    pub is_dmabuf: bool,
}

/// A registration of this library's own.
pub struct TwinMr {
    /// Of the standby.
    pub slot: u8,
    /// The registration, until somebody takes it to withdraw it.
    mr: AtomicPtr<ibv_mr>,
    /// Its local key.
    pub lkey: u32,
    /// Its remote key.
    pub rkey: u32,
}

impl TwinMr {
    /// One that was just made in that slot.
    pub fn new(slot: u8, mr: Raw<ibv_mr>) -> Self {
        // SAFETY: the registration was just made.
        let ibv_mr { lkey, rkey, .. } = unsafe { mr.0.read() };
        Self { slot, mr: AtomicPtr::new(mr.0), lkey, rkey }
    }

    /// To be withdrawn by the caller, once.
    pub fn take(&self) -> Option<Raw<ibv_mr>> {
        let mr = self.mr.swap(core::ptr::null_mut(), Ordering::AcqRel);
        (!mr.is_null()).then_some(Raw(mr))
    }
}

/// What is known of a registration beside its twins.
pub struct MrFacts {
    /// Its device.
    pub device: u16,
    /// The application's keys.
    pub keys: (u32, u32),
    /// First address as the NIC sees it, and bytes.
    pub span: (u64, u64),
    /// See [`MrShadow`], as the rest.
    pub readable: bool,
    /// As above.
    pub addr: usize,
    /// As above.
    pub access: u32,
    /// As above.
    pub pd: Raw<ibv_pd>,
    /// As above.
    pub is_dmabuf: bool,
}

impl MrShadow {
    /// One with these twins.
    pub fn new(facts: MrFacts, twins: Vec<TwinMr>) -> Self {
        let MrFacts { device, keys: (lkey, rkey), span: (iova, length), readable, addr, access, pd, is_dmabuf } = facts;
        let (later, withdrawn) = (OnceLock::new(), Mutex::new(false));
        Self { device, lkey, rkey, iova, length, readable, twins, later, withdrawn, addr, access, pd, is_dmabuf }
    }

    /// All twins.
    pub fn all_twins(&self) -> impl Iterator<Item = &TwinMr> {
        let later = self.later.get().into_iter().flat_map(|all| all.iter());
        self.twins.iter().chain(later.filter_map(OnceLock::get))
    }

    /// The twin in that slot.
    pub fn twin(&self, slot: u8) -> Option<&TwinMr> {
        self.all_twins().find(|twin| twin.slot == slot)
    }

    /// Makes a twin by `make` and enters it, unless the registration is withdrawn, or is being. `None`: it is.
    pub fn extend<R>(&self, make: impl FnOnce() -> R) -> Option<R> {
        let withdrawn = self.withdrawn.lock().unwrap_or_else(PoisonError::into_inner);
        (!*withdrawn).then(make)
    }

    /// Enters a twin. Within [`MrShadow::extend`].
    pub fn enter(&self, twin: TwinMr) {
        let later = self.later.get_or_init(Box::default);
        if let Some(place) = later.get(usize::from(twin.slot)) {
            let _ = place.set(twin);
        }
    }

    /// It gets no further twin; waits for one that is being made. In a forked child nobody makes one.
    pub fn close(&self) {
        if !process::is_child() {
            *self.withdrawn.lock().unwrap_or_else(PoisonError::into_inner) = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;
    use std::sync::mpsc;
    use std::time::Duration;

    fn on(slot: u8) -> StandbyPd {
        StandbyPd { slot, device: u16::from(slot) + 1, pd: Raw(core::ptr::null_mut()) }
    }

    fn slots(pd: &PdShadow) -> Vec<u8> {
        pd.present().iter().map(|twin| twin.slot).collect()
    }

    #[test]
    fn a_twin_that_came_later_is_a_target_once_all_memory_is_there_and_one_that_was_let_go_of_is_none() {
        let pd = PdShadow::new(0, Ok(vec![on(0)]));
        assert!(pd.is_ready(0) && !pd.knows(1));
        assert!(pd.grow(on(1)) && pd.knows(1) && !pd.is_ready(1));
        assert_eq!(slots(&pd), [0, 1], "what is registered from now on is there");
        pd.grown(1);
        assert!(pd.is_ready(1));
        assert!(pd.part(0).is_some_and(|twin| twin.slot == 0) && pd.part(0).is_none());
        assert_eq!(
            (slots(&pd), pd.knows(0), pd.twin(0).is_none()),
            (vec![1], true, true),
            "a slot is never another device's"
        );
        pd.set_freed(true);
        assert!(!pd.grow(on(2)));
    }

    /// A registration sees the twin, or is found by who made it: it is never in between.
    #[test]
    fn no_twin_comes_while_a_registration_is_being_made() {
        let (pd, grown) = (PdShadow::new(0, Ok(vec![on(0)])), AtomicBool::new(false));
        let (begins, began) = mpsc::channel();
        std::thread::scope(|scope| {
            let registering = pd.registering();
            scope.spawn(|| {
                let _ = begins.send(());
                assert!(pd.grow(on(1)));
                grown.store(true, Ordering::Release);
            });
            assert!(began.recv().is_ok());
            std::thread::sleep(Duration::from_millis(50));
            assert!(!grown.load(Ordering::Acquire) && slots(&pd) == [0]);
            drop(registering);
        });
        assert_eq!(slots(&pd), [0, 1]);
    }

    #[test]
    fn a_registration_that_is_withdrawn_gets_no_further_twin_and_each_is_withdrawn_once() {
        let mut region = ibv_mr::zeroed();
        let twin = |region: &mut ibv_mr, slot| TwinMr::new(slot, Raw(core::ptr::from_mut(region)));
        let facts = MrFacts {
            device: 0,
            keys: (1, 1),
            span: (0, 1),
            readable: false,
            addr: 0,
            access: 0,
            pd: Raw(core::ptr::null_mut()),
            is_dmabuf: false,
        };
        let shadow = MrShadow::new(facts, vec![twin(&mut region, 0)]);
        assert!(shadow.extend(|| shadow.enter(twin(&mut region, 2))).is_some());
        assert_eq!(shadow.all_twins().map(|twin| twin.slot).collect::<Vec<_>>(), [0, 2]);
        assert!(shadow.twin(2).is_some() && shadow.twin(1).is_none());
        shadow.close();
        let made = AtomicUsize::new(0);
        assert!(shadow.extend(|| made.fetch_add(1, Ordering::Relaxed)).is_none() && made.into_inner() == 0);
        assert_eq!(
            [shadow.all_twins().filter_map(TwinMr::take).count(), shadow.all_twins().filter_map(TwinMr::take).count()],
            [2, 0]
        );
    }
}
