//! The database: directories and files, what is in them, and what must agree.
//!
//! ```text
//! tables/NAME/rows/ID   id, key, amount, text      "edit" and "transfer" change the latter two
//! tables/NAME/index     the key of each id
//! tables/NAME/meta      number of rows, sum of their amounts
//! ```
//!
//! Each file ends with a line that has the sum of what is above. It is written in place, in two parts, and then
//! synced: a reader meanwhile finds it empty or cut. Nothing in here locks; the methods say what their callers must
//! hold. What has to agree:
//!
//! 1. Each file is complete (else *torn*).
//! 2. The index has all rows of its table, with their keys, and no others (else *index*).
//! 3. The meta file has their number and the sum of their amounts; all tables together have the amount with which the
//!    database was made, since operations only move it (else *money*).

use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display, Write as _};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::str::{FromStr, Lines};
use std::thread;
use std::time::Duration;

const AMOUNT_AT_FIRST: i64 = 1000;

pub(crate) type Index = BTreeMap<u32, u32>;

#[derive(Clone)]
pub(crate) struct Row {
    pub(crate) key: u32,
    pub(crate) amount: i64,
    pub(crate) text: String,
}

#[derive(Clone, Copy)]
pub(crate) struct Meta {
    pub(crate) rows: usize,
    pub(crate) amount: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Kind {
    Torn,
    Index,
    Money,
}

/// A rule is broken: this is what was seen.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Corruption {
    pub(crate) kind: Kind,
    pub(crate) seen: String,
}

/// Why an operation cannot go on.
#[derive(Debug)]
pub(crate) enum Fault {
    Corrupt(Corruption),
    /// The system, or the lock, refused.
    Failed(String),
}

impl Fault {
    pub(crate) fn corrupt(kind: Kind, seen: impl Into<String>) -> Self {
        Fault::Corrupt(Corruption { kind, seen: seen.into() })
    }
}

impl Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Corrupt(corruption) => f.write_str(&corruption.seen),
            Fault::Failed(message) => f.write_str(message),
        }
    }
}

impl From<Fault> for String {
    fn from(fault: Fault) -> Self {
        fault.to_string()
    }
}

/// What is in a table, or in all.
#[derive(Default)]
pub(crate) struct Survey {
    pub(crate) rows: BTreeMap<u32, Row>,
    pub(crate) amount: i64,
    pub(crate) corruptions: Vec<Corruption>,
}

impl Survey {
    /// Returns this, if nothing in it is corrupt.
    pub(crate) fn whole(mut self) -> Result<Self, Fault> {
        match self.corruptions.pop() {
            Some(corruption) => Err(Fault::Corrupt(corruption)),
            None => Ok(self),
        }
    }

    fn add(&mut self, kind: Kind, seen: String) {
        self.corruptions.push(Corruption { kind, seen });
    }

    /// What was found, unless it is corrupt.
    fn note<T>(&mut self, seen: Result<T, Fault>) -> Result<Option<T>, Fault> {
        match seen {
            Ok(found) => Ok(Some(found)),
            Err(Fault::Corrupt(corruption)) => {
                self.corruptions.push(corruption);
                Ok(None)
            }
            Err(failed) => Err(failed),
        }
    }
}

/// The names of what there is: files, and sub-trees to lock.
pub(crate) fn table_path(table: u32) -> String {
    format!("tables/t{table}")
}

pub(crate) fn rows_path(table: u32) -> String {
    table_path(table) + "/rows"
}

pub(crate) fn row_path(table: u32, id: u32) -> String {
    format!("{}/{id}", rows_path(table))
}

pub(crate) fn index_path(table: u32) -> String {
    table_path(table) + "/index"
}

pub(crate) fn meta_path(table: u32) -> String {
    table_path(table) + "/meta"
}

/// A database in a directory.
pub(crate) struct Store {
    directory: PathBuf,
    tables: u32,
    /// How many rows a table has at first.
    rows: u32,
    /// How much longer a sync is to take.
    disk_latency: Duration,
    /// What is not synced yet.
    written: RefCell<Vec<String>>,
}

impl Store {
    pub(crate) fn new(directory: &Path, tables: u32, rows: u32, disk_latency: Duration) -> Self {
        Store { directory: directory.to_owned(), tables, rows, disk_latency, written: RefCell::default() }
    }

    /// Makes the files.
    pub(crate) fn create(&self) -> Result<(), Fault> {
        for table in 0..self.tables {
            let path = rows_path(table);
            fs::create_dir_all(self.directory.join(&path)).map_err(|error| failed("make", &path, &error))?;
            let index: Index = (0..self.rows).map(|id| (id, id)).collect();
            for (&id, &key) in &index {
                self.write_row(table, id, &Row { key, amount: AMOUNT_AT_FIRST, text: String::new() })?;
            }
            self.write_index(table, &index)?;
            let amount = i64::from(self.rows) * AMOUNT_AT_FIRST;
            self.write_meta(table, Meta { rows: index.len(), amount })?;
        }
        self.sync()
    }

    pub(crate) fn tables(&self) -> u32 {
        self.tables
    }

    /// Ids are below this. In the long run, four of five are in use.
    pub(crate) fn ids(&self) -> u32 {
        self.rows + self.rows / 4 + 1
    }

    /// Needs the row read.
    pub(crate) fn read_row(&self, table: u32, id: u32) -> Result<Option<Row>, Fault> {
        self.read(&row_path(table, id), |lines| {
            let row = Row { key: field(lines, "key")?, amount: field(lines, "amount")?, text: field(lines, "text")? };
            (field::<u32>(lines, "id")? == id).then_some(row)
        })
    }

    /// Needs the row written.
    pub(crate) fn write_row(&self, table: u32, id: u32, row: &Row) -> Result<(), Fault> {
        let Row { key, amount, text } = row;
        self.write(&row_path(table, id), format!("key {key}\namount {amount}\ntext {text}\nid {id}\n"))
    }

    /// Needs the row written.
    pub(crate) fn remove_row(&self, table: u32, id: u32) -> Result<(), Fault> {
        let path = row_path(table, id);
        match fs::remove_file(self.directory.join(&path)) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(Fault::corrupt(Kind::Index, format!("{path} was there, then it was gone")))
            }
            Err(error) => Err(failed("remove", &path, &error)),
        }
    }

    /// Needs the index read.
    pub(crate) fn read_index(&self, table: u32) -> Result<Index, Fault> {
        let path = index_path(table);
        let index = self.read(&path, |lines| {
            lines
                .map(|line| line.split_once(' ').and_then(|(id, key)| Some((id.parse().ok()?, key.parse().ok()?))))
                .collect()
        })?;
        index.ok_or_else(|| Fault::corrupt(Kind::Torn, format!("{path} was gone")))
    }

    /// Needs the index written.
    pub(crate) fn write_index(&self, table: u32, index: &Index) -> Result<(), Fault> {
        let mut text = String::new();
        for (id, key) in index {
            writeln!(text, "{id} {key}").expect("a string can be written to");
        }
        self.write(&index_path(table), text)
    }

    /// Needs the meta file read.
    pub(crate) fn read_meta(&self, table: u32) -> Result<Meta, Fault> {
        let path = meta_path(table);
        let meta =
            self.read(&path, |lines| Some(Meta { rows: field(lines, "rows")?, amount: field(lines, "amount")? }))?;
        meta.ok_or_else(|| Fault::corrupt(Kind::Torn, format!("{path} was gone")))
    }

    /// Needs the meta file written.
    pub(crate) fn write_meta(&self, table: u32, meta: Meta) -> Result<(), Fault> {
        let Meta { rows, amount } = meta;
        self.write(&meta_path(table), format!("rows {rows}\namount {amount}\n"))
    }

    /// Rule 2 for one row, from what the index says about it. What was read must still be locked.
    pub(crate) fn compare(&self, table: u32, id: u32, row: Option<&Row>, indexed: Option<u32>) -> Result<(), Fault> {
        let found = row.map(|row| row.key);
        if found == indexed {
            return Ok(());
        }
        let told = |key: Option<u32>| key.map_or("nothing".into(), |key| format!("key {key}"));
        let seen = format!("{} has {}, its index {}", row_path(table, id), told(found), told(indexed));
        Err(Fault::corrupt(Kind::Index, seen))
    }

    /// Reads all of a table and says what is corrupt. Needs the table read.
    pub(crate) fn survey_table(&self, table: u32) -> Result<Survey, Fault> {
        let mut survey = Survey::default();
        let index = survey.note(self.read_index(table))?;
        let meta = survey.note(self.read_meta(table))?;
        let rows = rows_path(table);
        let entries = fs::read_dir(self.directory.join(&rows)).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let names =
            entries.map_err(|error| failed("list", &rows, &error))?.into_iter().map(|entry| entry.file_name());
        let mut torn = BTreeSet::new();
        for id in names.filter_map(|name| name.to_str()?.parse().ok()) {
            match survey.note(self.read_row(table, id))? {
                Some(Some(row)) => drop(survey.rows.insert(id, row)),
                Some(None) => {
                    survey.add(Kind::Index, format!("{} was listed, then it was gone", row_path(table, id)))
                }
                None => drop(torn.insert(id)),
            }
        }
        if let Some(index) = index {
            let ids: BTreeSet<u32> = index.keys().chain(survey.rows.keys()).copied().collect();
            for id in ids.difference(&torn) {
                let compared = self.compare(table, *id, survey.rows.get(id), index.get(id).copied());
                survey.note(compared)?;
            }
        }
        let rows = survey.rows.len();
        survey.amount = survey.rows.values().map(|row| row.amount).sum();
        if let Some(meta) = meta.filter(|meta| torn.is_empty() && (meta.rows, meta.amount) != (rows, survey.amount)) {
            let told = format!("{} has {} rows with {}", meta_path(table), meta.rows, meta.amount);
            survey.add(Kind::Money, format!("{told}, there are {rows} with {}", survey.amount));
        }
        Ok(survey)
    }

    /// Reads everything and says what is corrupt. Needs the root read.
    pub(crate) fn survey(&self) -> Result<Survey, Fault> {
        let mut all = Survey::default();
        for table in 0..self.tables {
            let survey = self.survey_table(table)?;
            all.amount += survey.amount;
            all.corruptions.extend(survey.corruptions);
        }
        let amount = i64::from(self.tables) * i64::from(self.rows) * AMOUNT_AT_FIRST;
        if all.amount != amount {
            all.add(Kind::Money, format!("all tables had {amount} at first and have {} now", all.amount));
        }
        Ok(all)
    }

    /// Reads a file; `None` if it is not there.
    fn read<T>(&self, path: &str, parse: impl FnOnce(&mut Lines<'_>) -> Option<T>) -> Result<Option<T>, Fault> {
        let bytes = match fs::read(self.directory.join(path)) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("read", path, &error)),
        };
        let whole = || {
            let text = std::str::from_utf8(&bytes).ok()?;
            let (body, sum) = text.split_at(text.rfind("sum ")?);
            (sum == sum_line(body)).then(|| parse(&mut body.lines())).flatten()
        };
        whole().map(Some).ok_or_else(|| {
            Fault::corrupt(Kind::Torn, format!("{path} was torn: {} bytes that do not make a whole", bytes.len()))
        })
    }

    /// Writes a file in two parts, as a longer one would be.
    fn write(&self, path: &str, mut text: String) -> Result<(), Fault> {
        text += &sum_line(&text);
        let (first, second) = text.as_bytes().split_at(text.len() / 2);
        let write = |mut file: File| file.write_all(first).and_then(|()| file.write_all(second));
        File::create(self.directory.join(path)).and_then(write).map_err(|error| failed("write", path, &error))?;
        self.written.borrow_mut().push(path.to_owned());
        Ok(())
    }

    /// Makes durable what was written, before it is unlocked.
    pub(crate) fn sync(&self) -> Result<(), Fault> {
        for path in self.written.take() {
            let synced =
                OpenOptions::new().write(true).open(self.directory.join(&path)).and_then(|file| file.sync_data());
            match synced {
                // Without a lock, another process may have removed it.
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("sync", &path, &error)),
                _ => {}
            }
        }
        thread::sleep(self.disk_latency);
        Ok(())
    }
}

fn failed(doing: &str, path: &str, error: &io::Error) -> Fault {
    Fault::Failed(format!("cannot {doing} {path}: {error}"))
}

fn sum_line(body: &str) -> String {
    format!("sum {:08x}\n", crc32fast::hash(body.as_bytes()))
}

fn field<T: FromStr>(lines: &mut Lines<'_>, name: &str) -> Option<T> {
    lines.next()?.strip_prefix(name)?.strip_prefix(' ')?.parse().ok()
}
