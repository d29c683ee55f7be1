use super::*;
use proptest::prelude::*;
use ring::TestPage;

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

const MAGIC: u32 = 0x7473_6574;

type Device = (u32, Option<String>);

fn keep<S: SharedMem>(page: &S, devices: &[Device]) {
    save(page, MAGIC, devices.iter(), |body, (number, text)| {
        body.push(*number);
        put_text(body, text.as_deref());
        (*number != 0).then_some(())
    });
}

fn kept<S: SharedMem>(page: &S) -> Option<Vec<Device>> {
    load(page, MAGIC, |rest| {
        let (number, tail) = rest.split_first()?;
        *rest = tail;
        Some((*number, take_text(rest)?))
    })
}

fn devices() -> impl Strategy<Value = Vec<Device>> {
    proptest::collection::vec((1u32.., proptest::option::of("[ -~]{0,40}")), 0..16)
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
    keep(&page, &[(7, Some("x".into()))]);
    assert!((0..SURVIVOR_OWNER).step_by(4).all(|offset| page.read(offset) == 0));
}

#[test]
fn another_kinds_cache_is_none() {
    let page = TestPage::default();
    keep(&page, &[(7, None)]);
    assert_eq!(load(&page, MAGIC + 1, |_| Some(())), None);
}

#[test]
fn what_does_not_fit_is_not_kept_by_half() {
    let page = TestPage::default();
    keep(&page, &[(7, None), (0, None)]);
    assert_eq!(kept(&page), None, "one that has no place");
    keep(&page, &[(7, Some("x".repeat(1800)))]);
    assert_eq!(kept(&page), None, "too long");
}
