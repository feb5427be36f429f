// The values a template computes with: Python's, as far as templates see them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/string_view.h"

namespace ring::jinja {

class Dict;
class Value;
struct Callable;
struct List;

// Immutable but for namespaces, so copies share their contents. Confined to
// one rendering, but for values without namespaces, which threads may share.
class Value {
 public:
  enum class Kind {
    kUndefined,  // a missing variable, attribute or item
    kNone,
    kBool,
    kInt,
    kFloat,
    kString,
    kList,  // also tuples, dict views and iterators: see List::Form
    kDict,
    kNamespace,  // namespace(): the one kind that {% set %} can change
    kCallable,   // a macro, a built-in function or a bound method
  };

  Value() : Value(None()) {}
  // `name` is what was looked up, for messages.
  static Value Undefined(absl::string_view name);
  static Value None();
  static Value Bool(bool value);
  static Value Int(int64_t value);
  static Value Float(double value);
  static Value String(std::string value);
  static Value String(absl::string_view value);
  static Value String(const char* value) {
    return String(absl::string_view(value));
  }
  static Value Of(List list);
  static Value OfList(std::vector<Value> items);
  static Value OfTuple(std::vector<Value> items);
  static Value Of(Dict dict);
  static Value NewNamespace(Dict members);
  static Value Of(Callable callable);

  Kind kind() const { return kind_; }
  bool is(Kind kind) const { return kind_ == kind; }
  bool is_number() const {
    return is(Kind::kBool) || is(Kind::kInt) || is(Kind::kFloat);
  }
  // A bool counts as an int, as in Python.
  bool is_integral() const { return is(Kind::kBool) || is(Kind::kInt); }

  // REQUIRES for all of these: the kind that they name.
  const std::string& undefined_name() const;
  bool boolean() const { return std::get<bool>(data_); }
  int64_t integer() const;  // REQUIRES: is_integral()
  double number() const;    // REQUIRES: is_number()
  const std::string& string() const;
  const List& list() const;
  const Dict& dict() const;
  Dict* namespace_members() const;
  const Callable& callable() const;

  // Lists and dicts: levels of nesting, 1 for a flat one; else 0.
  int depth() const;

 private:
  // shared_ptr: copies of a value share what they hold, and nobody owns it
  // more than the others.
  using Data =
      std::variant<std::monostate, bool, int64_t, double,
                   std::shared_ptr<const std::string>,
                   std::shared_ptr<const List>, std::shared_ptr<const Dict>,
                   std::shared_ptr<Dict>, std::shared_ptr<const Callable>>;
  template <typename T>
  Value(Kind kind, T data) : kind_(kind), data_(std::move(data)) {}

  Kind kind_;
  Data data_;
};

struct List {
  enum class Form {
    kList,
    kTuple,
    kView,      // dict.items() and such, range(): no indexing
    kIterator,  // of map, select ...: always true, no length, for one use
  };
  std::vector<Value> items;
  Form form = Form::kList;
  // Iterators: taken already. Reading one twice is an error here, where Python
  // silently finds it empty. Mutable: reading does not change the value.
  mutable bool consumed = false;
  int depth = 1;  // set by Value::Of
};

// Keys are strings and keep the order in which they were first set.
class Dict {
 public:
  using Entry = std::pair<std::string, Value>;

  // The value of `key`, or nullptr.
  const Value* Find(absl::string_view key) const;
  // Replaces the value of a key that is there already.
  void Set(absl::string_view key, Value value);
  const std::vector<Entry>& entries() const { return entries_; }
  size_t size() const { return entries_.size(); }
  // Deepest nesting among the values.
  int depth() const { return depth_; }

 private:
  std::vector<Entry> entries_;
  absl::flat_hash_map<std::string, size_t> index_;  // into entries_
  int depth_ = 0;
};

// What a call expression calls: a function of the interpreter by `name`, a
// macro by `name`, or the method `name` of `self`.
struct Callable {
  enum class Form { kFunction, kMacro, kMethod };
  Form form = Form::kFunction;
  std::string name;
  Value self;  // methods only
};

// Python's bool(value).
bool Truthy(const Value& value);

// Python's ==. Different kinds are unequal, but for numbers.
bool Equals(const Value& a, const Value& b);

// Python's type(value).__name__, for messages.
absl::string_view TypeName(const Value& value);

// True if str(value) is the same here as in Python; false for callables,
// namespaces, views and iterators, whose text is an address or a class.
bool IsPrintable(const Value& value);

// Python's str(value) and repr(value). REQUIRES: IsPrintable(value). An
// undefined value is the empty string.
std::string Str(const Value& value);
std::string Repr(const Value& value);

// repr of a float: the shortest digits that read back as the same number.
std::string FloatRepr(double value);

}  // namespace ring::jinja
