use std::sync::atomic::AtomicBool;

use super::*;

fn number(table: &Table, key: &[u8]) -> Option<u64> {
    table.get(key).map(|value| u64::from_le_bytes(value.try_into().unwrap()))
}

fn add(table: &Table, key: &[u8]) {
    table
        .update(key, |old| {
            let old = old.map_or(0, |old| u64::from_le_bytes(old.try_into().unwrap()));
            Change::Set((old + 1).to_le_bytes().to_vec(), None)
        })
        .unwrap();
}

/// Each is another.
fn fresh(entries: usize, key: usize, value: usize) -> Result<Table, Error> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    Table::new(&NUMBER.fetch_add(1, Ordering::Relaxed).to_string(), entries, key, value)
}

#[test]
fn keys_have_the_values_that_they_were_given_last() {
    let table = fresh(100, 16, 40).unwrap();
    assert!(table.is_empty() && table.get(b"a").is_none());
    for len in 0..=40 {
        table.set(b"a", &vec![len; len.into()], None).unwrap();
        assert_eq!(table.get(b"a"), Some(vec![len; len.into()]));
    }
    assert!(!table.set_new(b"a", b"x", None).unwrap());
    assert!(table.set_new(b"b", b"x", None).unwrap());
    assert_eq!(table.len(), 2);
    table
        .update(b"b", |old| {
            assert_eq!(old, Some(&b"x"[..]));
            Change::Remove
        })
        .unwrap();
    table.remove(b"a");
    table.remove(b"never there");
    assert!(table.is_empty());
    assert_eq!(table.set(&[0; 17], b"", None), Err(TooLarge { len: 17, most: 16 }));
    assert_eq!(table.set(b"", &[0; 41], None), Err(TooLarge { len: 41, most: 40 }));
    assert!(matches!(fresh(usize::MAX / 2, 16, 16), Err(Error::Size(_))));
}

#[test]
fn what_has_expired_is_gone() {
    let table = fresh(10, 8, 8).unwrap();
    table.set(b"short", b"1", Some(Duration::from_secs(60))).unwrap();
    table.set(b"long", b"2", Some(Duration::from_secs(60))).unwrap();
    assert!(table.get(b"short").is_some());
    table.set(b"short", b"1", Some(Duration::from_millis(20))).unwrap();
    while table.get(b"short").is_some() {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!((table.get(b"long"), table.len()), (Some(b"2".to_vec()), 1));
    assert!(table.set_new(b"short", b"3", None).unwrap());
}

#[test]
fn a_full_table_gives_up_what_expires_first() {
    let table = fresh(LOAD, 8, 8).unwrap();
    assert_eq!(table.sets, 1);
    for number in 0..15_u64 {
        table.set(&number.to_le_bytes(), b"x", Some(Duration::from_secs(100 - number))).unwrap();
    }
    table.set(b"never", b"x", None).unwrap();
    assert_eq!(table.len(), 15);
    assert!(table.get(&14_u64.to_le_bytes()).is_none() && table.get(&13_u64.to_le_bytes()).is_some());
    // One that is there already takes nobody's place.
    for _ in 0..20 {
        table.set(b"never", b"y", None).unwrap();
    }
    assert_eq!((table.len(), table.get(b"never")), (15, Some(b"y".to_vec())));
}

#[test]
fn a_table_has_room_for_the_keys_that_it_was_made_for() {
    // As many as fill a power of two of sets, with a key of its hash that is no secret.
    let count = LOAD as u64 * 4096;
    let table = Table { key: (1, 2), ..fresh(count as usize, 8, 8).unwrap() };
    assert_eq!(table.sets, 4096);
    (0..count).for_each(|key| table.set(&key.to_le_bytes(), b"x", None).unwrap());
    assert_eq!(table.len() as u64, count);
    assert!(matches!(fresh(10, usize::MAX, 10), Err(Error::Size(_))));
}

#[test]
fn readers_see_whole_values_while_writers_change_them() {
    let table = fresh(4, 8, 256).unwrap();
    table.set(b"key", &[0; 256], None).unwrap();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let value = table.get(b"key").expect("it is always there");
                    assert!(value.iter().all(|byte| *byte == value[0]), "{value:?}");
                }
            });
        }
        for round in 0..20_000 {
            table.set(b"key", &[round as u8; 256], None).unwrap();
        }
        over.store(true, Ordering::Relaxed);
    });
}

#[test]
fn nothing_is_lost_between_threads() {
    let table = fresh(100, 8, 8).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..2000_u32).for_each(|round| add(&table, &[(round % 5) as u8])));
        }
    });
    (0..5).for_each(|key| assert_eq!(number(&table, &[key]), Some(1600)));
}

#[test]
fn a_death_between_two_steps_leaves_a_sound_value() {
    let table = fresh(7, 8, 8).unwrap();
    table.set(b"key", b"old", None).unwrap();
    let set = table.set_of(table.hash(b"key"));
    // Died before the new one was found: nobody finds it.
    let free = set.entries().find(|entry| entry.version().load(Ordering::Relaxed) == 0).unwrap();
    free.write(table.largest, (9, table.hash(b"key"), u64::MAX), b"key", b"new");
    free.version().store(0, Ordering::Relaxed);
    assert_eq!(table.get(b"key"), Some(b"old".to_vec()));
    // Died before the old one was forgotten: the newer counts, and the next change tidies up.
    free.version().store(9, Ordering::Relaxed);
    assert_eq!(table.get(b"key"), Some(b"new".to_vec()));
    set.last_version().store(9, Ordering::Relaxed);
    table.set(b"key", b"next", None).unwrap();
    assert_eq!((table.get(b"key"), table.len()), (Some(b"next".to_vec()), 1));
}

/// A value that was replaced does not come back when the one that replaced it has gone.
#[test]
fn who_inherits_the_lock_forgets_what_was_replaced() {
    let table = fresh(1, 8, 8).unwrap();
    table.set(b"key", b"old", None).unwrap();
    let (set, hash) = (table.set_of(table.hash(b"key")), table.hash(b"key"));
    let free = set.entries().find(|entry| entry.version().load(Ordering::Relaxed) == 0).unwrap();
    free.write(table.largest, (9, hash, milliseconds() + 1000), b"key", b"new");
    set.last_version().store(9, Ordering::Relaxed);
    // Held by a process that there is none of.
    set.words[0].store(7 << 22 | 4_194_300, Ordering::Relaxed);
    assert_eq!(table.get(b"key"), Some(b"new".to_vec()));
    table.set(b"other", b"x", None).unwrap();
    while table.get(b"key").is_some() {
        std::thread::sleep(Duration::from_millis(1));
    }
    table.set(b"other", b"y", None).unwrap();
    assert_eq!((table.get(b"key"), table.len()), (None, 1));
}

#[test]
fn words_of_chance_do_no_harm() {
    let table = fresh(20, 8, 24).unwrap();
    let mut word = 0x9e37_79b9_7f4a_7c15_u64;
    for round in 0..2000_u64 {
        for at in &table.words[HEAD..] {
            word = word.rotate_left(7).wrapping_mul(0xbf58_476d_1ce4_e5b9) ^ round;
            // Small ones are the likely lengths and versions.
            at.store(if word & 1 == 0 { word } else { word >> 58 }, Ordering::Relaxed);
        }
        (0..table.sets).for_each(|set| table.set_number(set).words[0].store(0, Ordering::Relaxed));
        let _any = table.get(b"key");
        table.set(b"key", b"value", None).unwrap();
        assert_eq!(table.get(b"key"), Some(b"value".to_vec()), "{round}");
        table.remove(b"key");
        assert_eq!(table.get(b"key"), None);
    }
}
