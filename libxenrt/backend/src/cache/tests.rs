use super::*;
use proptest::prelude::*;
use ring::TestPage;
use xenstore::{Store, StoreError};

/// Takes only the first so many stores.
struct Dying<'a>(&'a TestPage, std::cell::Cell<usize>);
impl SharedMem for Dying<'_> {
    fn read(&self, offset: usize) -> u32 {
        self.0.read(offset)
    }
    fn write(&self, offset: usize, value: u32) {
        if let Some(left) = self.1.get().checked_sub(1) {
            self.1.set(left);
            self.0.write(offset, value);
        }
    }
    fn load_acquire(&self, offset: usize) -> u32 {
        self.0.read(offset)
    }
    fn store_release(&self, offset: usize, value: u32) {
        self.write(offset, value);
    }
    fn fence(&self) {}
}

const ME: DomId = DomId(1);

/// A device with a number and a text; one with the number 0 cannot be kept.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Tap(u32, Option<String>);

impl Kind for Tap {
    const NAME: &'static str = "tap";
    const OTHERS: &'static [&'static str] = &[];
    fn discover<S: Store>(_: &mut S, _: DomId) -> Result<Vec<Directory<Self>>, StoreError> {
        Err(StoreError::Timeout)
    }
}

impl Kept for Tap {
    const MAGIC: u32 = 0x7370_6174;
    fn encode(&self, body: &mut Vec<u32>) -> Option<()> {
        body.push(self.0);
        put_text(body, self.1.as_deref());
        (self.0 != 0).then_some(())
    }
    fn decode(rest: &mut &[u32]) -> Option<Self> {
        let (number, tail) = rest.split_first()?;
        *rest = tail;
        Some(Self(*number, take_text(rest)?))
    }
}

/// Another kind that is kept alike.
#[derive(Debug, PartialEq, Eq)]
struct Top(Tap);

impl Kind for Top {
    const NAME: &'static str = "top";
    const OTHERS: &'static [&'static str] = &[];
    fn discover<S: Store>(_: &mut S, _: DomId) -> Result<Vec<Directory<Self>>, StoreError> {
        Err(StoreError::Timeout)
    }
}

impl Kept for Top {
    const MAGIC: u32 = Tap::MAGIC + 1;
    fn encode(&self, body: &mut Vec<u32>) -> Option<()> {
        self.0.encode(body)
    }
    fn decode(rest: &mut &[u32]) -> Option<Self> {
        Tap::decode(rest).map(Self)
    }
}

type Device = Directory<Tap>;

fn tap(frontend: u16, device: u16, number: u32, text: Option<String>) -> Device {
    let place = Place::usual(ME, Tap::NAME, DomId(frontend), device);
    let (back_state, front_state) = (XenbusState::Connected, XenbusState::Connected);
    Directory { place, back_state, front_state, nodes: Tap(number, text) }
}

fn keep<S: SharedMem>(page: &S, devices: &[Device]) {
    save(page, ME, devices.iter().map(Some));
}

fn kept<S: SharedMem>(page: &S) -> Option<Vec<Device>> {
    load(page, ME)
}

fn devices() -> impl Strategy<Value = Vec<Device>> {
    let one = (0u16..0x7ff0, any::<u16>(), 1u32.., proptest::option::of("[ -~]{0,40}"));
    proptest::collection::vec(one.prop_map(|(f, d, number, text)| tap(f, d, number, text)), 0..16)
}

proptest! {
    #[test]
    fn what_is_kept_comes_back(devices in devices()) {
        let page = TestPage::default();
        keep(&page, &devices);
        prop_assert_eq!(kept(&page), Some(devices));
        clear(&page);
        prop_assert_eq!(kept(&page), None);
    }

    /// A death after any store leaves the old cache, none, or the new one; never a mixture.
    #[test]
    fn half_a_cache_is_none(old in devices(), new in devices(), stores in 0usize..300) {
        let page = TestPage::default();
        keep(&page, &old);
        keep(&Dying(&page, stores.into()), &new);
        let found = kept(&page);
        prop_assert!(found.is_none() || found.as_ref() == Some(&new) || stores == 0 && found == Some(old));
    }

    #[test]
    fn a_damaged_cache_is_none(devices in devices(), word in 0usize..448, bit in 0u32..32) {
        let page = TestPage::default();
        keep(&page, &devices);
        let before = kept(&page);
        page.write(at(word), page.read(at(word)) ^ 1 << bit);
        let used = HEADER + page.read(at(2)) as usize;
        let found = kept(&page);
        prop_assert!(found.is_none() || word >= used && found == before);
    }
}

#[test]
fn the_journals_part_is_not_touched() {
    let page = TestPage::default();
    keep(&page, &[tap(3, 0, 7, Some("x".into()))]);
    assert!((0..SURVIVOR_OWNER).step_by(4).all(|offset| page.read(offset) == 0));
}

#[test]
fn another_kinds_cache_is_none() {
    let page = TestPage::default();
    keep(&page, &[tap(3, 0, 7, None)]);
    assert_eq!(load::<_, Top>(&page, ME), None);
}

#[test]
fn what_does_not_fit_is_not_kept_by_half() {
    let page = TestPage::default();
    let whole = tap(3, 0, 7, None);
    keep(&page, &[whole.clone(), tap(3, 1, 0, None)]);
    assert_eq!(kept(&page), None, "one that cannot be kept");
    keep(&page, &[tap(3, 0, 7, Some("x".repeat(1800)))]);
    assert_eq!(kept(&page), None, "too long");
    let mut odd = tap(3, 1, 7, None);
    odd.place.front = "/local/domain/3/device/other/1".into();
    keep(&page, &[whole.clone(), odd]);
    assert_eq!(kept(&page), None, "other paths than the usual ones");
    save(&page, ME, [Some(&whole), None].into_iter());
    assert_eq!(kept(&page), None, "one that is not known");
    keep(&page, core::slice::from_ref(&whole));
    assert_eq!(kept(&page), Some(vec![whole]));
}
