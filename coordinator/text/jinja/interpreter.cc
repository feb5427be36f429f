#include "coordinator/text/jinja/interpreter.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "coordinator/text/jinja/arguments.h"
#include "coordinator/text/jinja/filters.h"
#include "coordinator/text/jinja/is_tests.h"
#include "coordinator/text/jinja/methods.h"
#include "coordinator/text/jinja/parser.h"
#include "kernels/base/check.h"
#include "kernels/base/status_macros.h"

namespace ring::jinja {
namespace {

using Kind = Value::Kind;

// How a statement ended.
enum class Flow { kNext, kBreak, kContinue };

absl::Status Invalid(absl::string_view what) {
  return absl::InvalidArgumentError(what);
}

// One rendering.
class Interpreter {
 public:
  Interpreter(const Dict& variables, const Clock& clock, const Limits& limits)
      : variables_(variables), clock_(clock), budget_(limits), scopes_(1) {}

  absl::StatusOr<std::string> Run(const Body& body) {
    RING_RETURN_IF_ERROR(Execute(body).status());
    return std::move(out_);
  }

 private:
  using Scope = absl::flat_hash_map<std::string, Value>;

  // --- Statements ---

  absl::StatusOr<Flow> Execute(const Body& body) {
    for (const auto& statement : body) {
      absl::StatusOr<Flow> flow = Execute(*statement);
      if (!flow.ok()) return Located(flow.status(), statement->line);
      if (*flow != Flow::kNext) return flow;
    }
    return Flow::kNext;
  }

  absl::StatusOr<Flow> Execute(const Statement& statement) {
    RING_RETURN_IF_ERROR(Enter());
    absl::StatusOr<Flow> flow = ExecuteKind(statement);
    --depth_;
    return flow;
  }

  absl::StatusOr<Flow> ExecuteKind(const Statement& statement) {
    switch (statement.kind) {
      case Statement::Kind::kText:
        RING_RETURN_IF_ERROR(Write(statement.text));
        return Flow::kNext;
      case Statement::Kind::kPrint: {
        RING_ASSIGN_OR_RETURN(const Value value,
                              Evaluate(*statement.expression));
        RING_ASSIGN_OR_RETURN(const std::string text, Text(value));
        RING_RETURN_IF_ERROR(Write(text));
        return Flow::kNext;
      }
      case Statement::Kind::kIf:
        return ExecuteIf(statement);
      case Statement::Kind::kFor:
        return ExecuteFor(statement);
      case Statement::Kind::kSet: {
        RING_ASSIGN_OR_RETURN(Value value, Evaluate(*statement.expression));
        RING_RETURN_IF_ERROR(statement.attribute.empty()
                                 ? Assign(statement.targets, std::move(value))
                                 : AssignMember(statement, std::move(value)));
        return Flow::kNext;
      }
      case Statement::Kind::kSetBlock: {
        RING_ASSIGN_OR_RETURN(std::string text, Capture(statement.body));
        scopes_.back()[statement.targets[0]] = Value::String(std::move(text));
        return Flow::kNext;
      }
      case Statement::Kind::kMacro:
        macros_[statement.targets[0]] = &statement;
        scopes_.back()[statement.targets[0]] = Value::Of(
            Callable{Callable::Form::kMacro, statement.targets[0], Value()});
        return Flow::kNext;
      case Statement::Kind::kBreak:
        return Flow::kBreak;
      case Statement::Kind::kContinue:
        return Flow::kContinue;
    }
    return Flow::kNext;
  }

  absl::StatusOr<Flow> ExecuteIf(const Statement& statement) {
    for (const Statement::Branch& branch : statement.branches) {
      if (branch.condition != nullptr) {
        RING_ASSIGN_OR_RETURN(const Value value, Evaluate(*branch.condition));
        if (!Truthy(value)) continue;
      }
      return Execute(branch.body);
    }
    return Flow::kNext;
  }

  absl::StatusOr<Flow> ExecuteFor(const Statement& loop) {
    RING_ASSIGN_OR_RETURN(const Value sequence, Evaluate(*loop.expression));
    RING_ASSIGN_OR_RETURN(std::vector<Value> items,
                          Iterate(sequence, &budget_));
    if (loop.condition != nullptr) {
      RING_ASSIGN_OR_RETURN(items, Filtered(loop, std::move(items)));
    }
    if (items.empty()) return Execute(loop.else_body);
    Flow flow = Flow::kNext;
    for (size_t i = 0; i < items.size() && flow != Flow::kBreak; ++i) {
      // Every round has a scope of its own: what it sets is gone after it.
      scopes_.emplace_back();
      scopes_.back()["loop"] = LoopVariable(items, i);
      RING_RETURN_IF_ERROR(Assign(loop.targets, items[i]));
      RING_ASSIGN_OR_RETURN(flow, Execute(loop.body));
      scopes_.pop_back();
    }
    return Flow::kNext;
  }

  // The items for which the condition of the loop holds.
  absl::StatusOr<std::vector<Value>> Filtered(const Statement& loop,
                                              std::vector<Value> items) {
    std::vector<Value> kept;
    for (Value& item : items) {
      scopes_.emplace_back();
      RING_RETURN_IF_ERROR(Assign(loop.targets, item));
      RING_ASSIGN_OR_RETURN(const Value holds, Evaluate(*loop.condition));
      scopes_.pop_back();
      if (Truthy(holds)) kept.push_back(std::move(item));
    }
    return kept;
  }

  static Value LoopVariable(const std::vector<Value>& items, size_t i) {
    const int64_t index = static_cast<int64_t>(i);
    const int64_t length = static_cast<int64_t>(items.size());
    Dict loop;
    loop.Set("index", Value::Int(index + 1));
    loop.Set("index0", Value::Int(index));
    loop.Set("revindex", Value::Int(length - index));
    loop.Set("revindex0", Value::Int(length - index - 1));
    loop.Set("first", Value::Bool(i == 0));
    loop.Set("last", Value::Bool(index + 1 == length));
    loop.Set("length", Value::Int(length));
    loop.Set("previtem", i > 0 ? items[i - 1]
                               : Value::Undefined("there is no item before"));
    loop.Set("nextitem", i + 1 < items.size()
                             ? items[i + 1]
                             : Value::Undefined("there is no item after"));
    // Only namespaces give attributes and nothing else.
    return Value::NewNamespace(std::move(loop));
  }

  // One name takes the value, several take its items.
  absl::Status Assign(const std::vector<std::string>& targets, Value value) {
    if (targets.size() == 1) {
      scopes_.back()[targets[0]] = std::move(value);
      return absl::OkStatus();
    }
    RING_ASSIGN_OR_RETURN(std::vector<Value> items, Iterate(value, &budget_));
    if (items.size() != targets.size()) {
      return Invalid(
          absl::StrCat(items.size(), " values for ", targets.size(), " names"));
    }
    for (size_t i = 0; i < targets.size(); ++i) {
      scopes_.back()[targets[i]] = std::move(items[i]);
    }
    return absl::OkStatus();
  }

  absl::Status AssignMember(const Statement& set, Value value) {
    const Value object = Lookup(set.targets[0]);
    if (!object.is(Kind::kNamespace)) {
      return Invalid(absl::StrCat("'", set.targets[0],
                                  "' is no namespace: its attributes cannot "
                                  "be set"));
    }
    RING_RETURN_IF_ERROR(RequireStorable(value));
    object.namespace_members()->Set(set.attribute, std::move(value));
    return absl::OkStatus();
  }

  // A namespace in a container could contain itself.
  static absl::Status RequireStorable(const Value& value) {
    if (!value.is(Kind::kNamespace) && !value.is(Kind::kCallable)) {
      return absl::OkStatus();
    }
    return Invalid(absl::StrCat("a ", TypeName(value),
                                " inside of another value is not supported"));
  }

  absl::Status Write(const std::string& text) {
    RING_RETURN_IF_ERROR(budget_.SpendString(text.size()));
    if (out_.size() + text.size() >
        static_cast<size_t>(budget_.limits().string_bytes)) {
      return budget_.SpendString(out_.size() + text.size());
    }
    out_ += text;
    return absl::OkStatus();
  }

  // What `body` renders, as a text of its own.
  absl::StatusOr<std::string> Capture(const Body& body) {
    std::string outer = std::exchange(out_, "");
    RING_RETURN_IF_ERROR(Execute(body).status());
    return std::exchange(out_, std::move(outer));
  }

  // --- Expressions ---

  absl::StatusOr<Value> Evaluate(const Expression& expression) {
    RING_RETURN_IF_ERROR(Enter());
    absl::StatusOr<Value> value = EvaluateKind(expression);
    --depth_;
    if (!value.ok()) return Located(value.status(), expression.line);
    if (value->depth() > kMaxValueDepth) {
      return Located(absl::ResourceExhaustedError(absl::StrCat(
                         "a value nested deeper than ", kMaxValueDepth)),
                     expression.line);
    }
    return value;
  }

  absl::StatusOr<Value> EvaluateKind(const Expression& expression) {
    switch (expression.kind) {
      case Expression::Kind::kConstant:
        return expression.value;
      case Expression::Kind::kName:
        return Lookup(expression.name);
      case Expression::Kind::kList:
      case Expression::Kind::kTuple:
        return EvaluateList(expression);
      case Expression::Kind::kDict:
        return EvaluateDict(expression);
      case Expression::Kind::kCall:
        return EvaluateCall(expression);
      case Expression::Kind::kConcat:
        return EvaluateConcat(expression);
      case Expression::Kind::kCompare:
        return EvaluateCompare(expression);
      case Expression::Kind::kAnd:
      case Expression::Kind::kOr: {
        RING_ASSIGN_OR_RETURN(Value left, Evaluate(*expression.operands[0]));
        const bool is_or = expression.kind == Expression::Kind::kOr;
        if (Truthy(left) == is_or) return left;
        return Evaluate(*expression.operands[1]);
      }
      case Expression::Kind::kConditional: {
        RING_ASSIGN_OR_RETURN(const Value condition,
                              Evaluate(*expression.operands[1]));
        if (Truthy(condition)) return Evaluate(*expression.operands[0]);
        if (expression.operands[2] == nullptr) {
          return Value::Undefined("the else part of an inline if");
        }
        return Evaluate(*expression.operands[2]);
      }
      default:
        return EvaluateOnFirst(expression);
    }
  }

  // The kinds that begin with the value of operands[0].
  absl::StatusOr<Value> EvaluateOnFirst(const Expression& expression) {
    const auto operand = [&expression](size_t i) -> const Expression& {
      return *expression.operands[i];
    };
    RING_ASSIGN_OR_RETURN(const Value first, Evaluate(operand(0)));
    switch (expression.kind) {
      case Expression::Kind::kAttribute:
        return GetAttribute(first, expression.name);
      case Expression::Kind::kItem: {
        RING_ASSIGN_OR_RETURN(const Value key, Evaluate(operand(1)));
        return GetItem(first, key);
      }
      case Expression::Kind::kSlice: {
        RING_ASSIGN_OR_RETURN(const Value start, Evaluate(operand(1)));
        RING_ASSIGN_OR_RETURN(const Value stop, Evaluate(operand(2)));
        RING_ASSIGN_OR_RETURN(const Value step, Evaluate(operand(3)));
        return Slice(first, start, stop, step, &budget_);
      }
      case Expression::Kind::kFilter: {
        RING_ASSIGN_OR_RETURN(const Arguments arguments,
                              EvaluateArguments(expression));
        return ApplyFilter(expression.name, first, arguments, &budget_);
      }
      case Expression::Kind::kTest: {
        RING_ASSIGN_OR_RETURN(const Arguments arguments,
                              EvaluateArguments(expression));
        RING_ASSIGN_OR_RETURN(
            const bool holds,
            ApplyTest(expression.name, first, arguments, &budget_));
        return Value::Bool(holds);
      }
      case Expression::Kind::kNot:
        return Value::Bool(!Truthy(first));
      case Expression::Kind::kNegate:
        return Negate(first);
      case Expression::Kind::kPlus:
        if (first.is_integral()) return Value::Int(first.integer());
        if (first.is_number()) return first;
        return Invalid(absl::StrCat("'+' before a ", TypeName(first)));
      case Expression::Kind::kBinary: {
        RING_ASSIGN_OR_RETURN(const Value second, Evaluate(operand(1)));
        return Apply(expression.binary, first, second, &budget_);
      }
      default:
        RING_CHECK(false) << "expression of kind "
                          << static_cast<int>(expression.kind);
        return Value();
    }
  }

  absl::StatusOr<Value> EvaluateList(const Expression& expression) {
    std::vector<Value> items;
    RING_RETURN_IF_ERROR(budget_.SpendItems(expression.operands.size()));
    for (const ExpressionPtr& operand : expression.operands) {
      RING_ASSIGN_OR_RETURN(Value item, Evaluate(*operand));
      RING_RETURN_IF_ERROR(RequireStorable(item));
      items.push_back(std::move(item));
    }
    return expression.kind == Expression::Kind::kTuple
               ? Value::OfTuple(std::move(items))
               : Value::OfList(std::move(items));
  }

  absl::StatusOr<Value> EvaluateDict(const Expression& expression) {
    Dict dict;
    RING_RETURN_IF_ERROR(budget_.SpendItems(expression.operands.size()));
    for (size_t i = 0; i < expression.operands.size(); i += 2) {
      RING_ASSIGN_OR_RETURN(const Value key, Evaluate(*expression.operands[i]));
      RING_ASSIGN_OR_RETURN(Value value, Evaluate(*expression.operands[i + 1]));
      if (!key.is(Kind::kString)) {
        return Invalid(absl::StrCat("a dict key of type ", TypeName(key),
                                    " is not supported"));
      }
      RING_RETURN_IF_ERROR(RequireStorable(value));
      dict.Set(key.string(), std::move(value));
    }
    return Value::Of(std::move(dict));
  }

  absl::StatusOr<Value> EvaluateConcat(const Expression& expression) {
    std::string joined;
    for (const ExpressionPtr& operand : expression.operands) {
      RING_ASSIGN_OR_RETURN(const Value value, Evaluate(*operand));
      RING_ASSIGN_OR_RETURN(const std::string text, Text(value));
      RING_RETURN_IF_ERROR(budget_.SpendString(joined.size() + text.size()));
      joined += text;
    }
    return Value::String(std::move(joined));
  }

  // a < b < c is a < b and b < c.
  absl::StatusOr<Value> EvaluateCompare(const Expression& expression) {
    RING_ASSIGN_OR_RETURN(Value left, Evaluate(*expression.operands[0]));
    for (size_t i = 0; i < expression.comparisons.size(); ++i) {
      RING_ASSIGN_OR_RETURN(Value right, Evaluate(*expression.operands[i + 1]));
      RING_ASSIGN_OR_RETURN(const bool holds, Compare(expression.comparisons[i],
                                                      left, right, &budget_));
      if (!holds) return Value::Bool(false);
      left = std::move(right);
    }
    return Value::Bool(true);
  }

  absl::StatusOr<Arguments> EvaluateArguments(const Expression& expression) {
    Arguments arguments;
    for (size_t i = 1; i < expression.operands.size(); ++i) {
      RING_ASSIGN_OR_RETURN(Value value, Evaluate(*expression.operands[i]));
      arguments.positional.push_back(std::move(value));
    }
    for (const auto& [name, operand] : expression.named) {
      RING_ASSIGN_OR_RETURN(Value value, Evaluate(*operand));
      arguments.named.emplace_back(name, std::move(value));
    }
    return arguments;
  }

  // --- Calls ---

  absl::StatusOr<Value> EvaluateCall(const Expression& expression) {
    RING_ASSIGN_OR_RETURN(const Value callee,
                          Evaluate(*expression.operands[0]));
    RING_ASSIGN_OR_RETURN(const Arguments arguments,
                          EvaluateArguments(expression));
    if (callee.is(Kind::kUndefined)) {
      return Invalid(
          absl::StrCat("'", callee.undefined_name(), "' is undefined"));
    }
    if (!callee.is(Kind::kCallable)) {
      return Invalid(
          absl::StrCat("'", TypeName(callee), "' object is not callable"));
    }
    const Callable& callable = callee.callable();
    switch (callable.form) {
      case Callable::Form::kFunction:
        return CallFunction(callable.name, arguments);
      case Callable::Form::kMacro:
        return CallMacro(*macros_.at(callable.name), arguments);
      case Callable::Form::kMethod:
        return CallMethod(callable.self, callable.name, arguments, &budget_);
    }
    return Invalid("not callable");
  }

  absl::StatusOr<Value> CallFunction(const std::string& name,
                                     const Arguments& arguments) {
    if (name == "namespace" || name == "dict") {
      RING_ASSIGN_OR_RETURN(Dict members, Members(name, arguments));
      return name == "dict" ? Value::Of(std::move(members))
                            : Value::NewNamespace(std::move(members));
    }
    if (name == "range") return Range(arguments);
    RING_ASSIGN_OR_RETURN(const BoundArguments bound,
                          BoundArguments::Bind(name, arguments, {{"text"}}));
    if (name == "raise_exception") {
      RING_ASSIGN_OR_RETURN(const std::string text, Text(bound[0]));
      return Invalid(absl::StrCat("the template raised: ", text));
    }
    RING_ASSIGN_OR_RETURN(const std::string format, bound.String(0));
    return Value::String(
        absl::FormatTime(format, clock_(), absl::LocalTimeZone()));
  }

  // dict(...) and namespace(...): of another dict, and of named arguments.
  absl::StatusOr<Dict> Members(const std::string& name,
                               const Arguments& arguments) {
    Dict members;
    if (arguments.positional.size() > 1 ||
        (arguments.positional.size() == 1 &&
         !arguments.positional[0].is(Kind::kDict))) {
      return Invalid(absl::StrCat(name, ": the argument is not one dict"));
    }
    if (!arguments.positional.empty()) {
      members = arguments.positional[0].dict();
    }
    RING_RETURN_IF_ERROR(
        budget_.SpendItems(members.size() + arguments.named.size()));
    for (const auto& [key, value] : arguments.named) {
      RING_RETURN_IF_ERROR(RequireStorable(value));
      members.Set(key, value);
    }
    return members;
  }

  absl::StatusOr<Value> Range(const Arguments& arguments) {
    const bool one = arguments.positional.size() == 1;
    RING_ASSIGN_OR_RETURN(
        const BoundArguments bound,
        BoundArguments::Bind(
            "range", arguments,
            {{"start"}, {"stop", Value::Int(0)}, {"step", Value::Int(1)}}));
    RING_ASSIGN_OR_RETURN(const int64_t first, bound.Int(0));
    RING_ASSIGN_OR_RETURN(const int64_t second, bound.Int(1));
    RING_ASSIGN_OR_RETURN(const int64_t step, bound.Int(2));
    if (step == 0) return Invalid("range: the step is 0");
    const int64_t stop = one ? first : second;
    List list;
    list.form = List::Form::kView;
    for (int64_t i = one ? 0 : first; step > 0 ? i < stop : i > stop;) {
      RING_RETURN_IF_ERROR(budget_.SpendItems(1));
      list.items.push_back(Value::Int(i));
      if (__builtin_add_overflow(i, step, &i)) break;
    }
    return Value::Of(std::move(list));
  }

  // A macro sees its parameters and what the template sets outside of loops.
  absl::StatusOr<Value> CallMacro(const Statement& macro,
                                  const Arguments& arguments) {
    const auto& parameters = macro.parameters;
    const std::string& name = macro.targets[0];
    if (arguments.positional.size() > parameters.size()) {
      return Invalid(absl::StrCat(name, ": takes at most ", parameters.size(),
                                  " arguments"));
    }
    Scope scope;
    for (size_t i = 0; i < arguments.positional.size(); ++i) {
      scope[parameters[i].name] = arguments.positional[i];
    }
    for (const auto& [key, value] : arguments.named) {
      const bool known = std::any_of(parameters.begin(), parameters.end(),
                                     [&key = key](const auto& parameter) {
                                       return parameter.name == key;
                                     });
      if (!known || !scope.emplace(key, value).second) {
        return Invalid(absl::StrCat(name, ": the argument '", key,
                                    "' is unknown or given twice"));
      }
    }
    std::vector<Scope> outer = std::exchange(scopes_, {});
    scopes_.push_back(std::move(outer.front()));
    scopes_.push_back(std::move(scope));
    for (const Statement::Parameter& parameter : parameters) {
      if (scopes_.back().contains(parameter.name)) continue;
      Value value = Value::Undefined(parameter.name);
      if (parameter.fallback != nullptr) {
        RING_ASSIGN_OR_RETURN(value, Evaluate(*parameter.fallback));
      }
      scopes_.back()[parameter.name] = std::move(value);
    }
    RING_ASSIGN_OR_RETURN(std::string text, Capture(macro.body));
    outer.front() = std::move(scopes_.front());
    scopes_ = std::move(outer);
    return Value::String(std::move(text));
  }

  // --- Names, text, errors ---

  Value Lookup(const std::string& name) const {
    for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope) {
      const auto found = scope->find(name);
      if (found != scope->end()) return found->second;
    }
    const Value* variable = variables_.Find(name);
    if (variable != nullptr) return *variable;
    if (IsFunction(name)) {
      return Value::Of(Callable{Callable::Form::kFunction, name, Value()});
    }
    return Value::Undefined(name);
  }

  absl::StatusOr<std::string> Text(const Value& value) const {
    if (IsPrintable(value)) return Str(value);
    return Invalid(
        absl::StrCat("the text of a ", TypeName(value), " is not supported"));
  }

  // To be followed by --depth_ unless it fails, which ends the rendering.
  absl::Status Enter() {
    if (++depth_ > budget_.limits().depth) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "more than ", budget_.limits().depth, " levels of evaluation"));
    }
    return budget_.Spend(1);
  }

  // Adds the line to an error once, where it arises.
  absl::Status Located(const absl::Status& status, int line) {
    if (std::exchange(located_, true)) return status;
    return absl::Status(status.code(),
                        absl::StrCat("line ", line, ": ", status.message()));
  }

  const Dict& variables_;
  const Clock& clock_;
  Budget budget_;
  std::vector<Scope> scopes_;  // innermost last; [0] is the template's own
  absl::flat_hash_map<std::string, const Statement*> macros_;
  std::string out_;
  int depth_ = 0;
  bool located_ = false;
};

}  // namespace

absl::StatusOr<std::string> Render(const Body& body, const Dict& variables,
                                   const Clock& clock, const Limits& limits) {
  return Interpreter(variables, clock, limits).Run(body);
}

}  // namespace ring::jinja
