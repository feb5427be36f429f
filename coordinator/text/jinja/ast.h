// A parsed template.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/text/jinja/operators.h"
#include "coordinator/text/jinja/value.h"

namespace ring::jinja {

struct Expression;
struct Statement;
using ExpressionPtr = std::unique_ptr<Expression>;
using Body = std::vector<std::unique_ptr<Statement>>;

struct Expression {
  enum class Kind {
    kConstant,     // value
    kName,         // name
    kList,         // operands
    kTuple,        // operands
    kDict,         // operands: key, value, key, value ...
    kAttribute,    // operands[0].name
    kItem,         // operands[0][operands[1]]
    kSlice,        // operands[0][1:2:3]; absent parts are constants None
    kCall,         // operands[0](operands[1..], named)
    kFilter,       // operands[0] | name(operands[1..], named)
    kTest,         // operands[0] is name(operands[1..], named)
    kNot,          // operands[0]
    kNegate,       // operands[0]
    kPlus,         // operands[0]
    kBinary,       // operands[0] binary operands[1]
    kCompare,      // operands[0] comparisons[0] operands[1] ...
    kConcat,       // operands, all of them
    kAnd,          // operands[0], operands[1]
    kOr,           // operands[0], operands[1]
    kConditional,  // operands[0] if operands[1] else operands[2] (may be null)
  };
  Kind kind;
  int line;
  int depth = 1;  // of nesting
  std::string name;
  Value value;
  std::vector<ExpressionPtr> operands;
  std::vector<std::pair<std::string, ExpressionPtr>> named;
  BinaryOperator binary = BinaryOperator::kAdd;
  std::vector<Comparison> comparisons;
};

struct Statement {
  enum class Kind {
    kText,      // text
    kPrint,     // expression
    kIf,        // branches; a null condition is "else"
    kFor,       // targets in expression [if condition]: body, else else_body
    kSet,       // targets = expression, or targets[0].attribute = expression
    kSetBlock,  // targets[0] = what body renders
    kMacro,     // macro targets[0](parameters): body
    kBreak,
    kContinue,
  };
  struct Branch {
    ExpressionPtr condition;
    Body body;
  };
  struct Parameter {
    std::string name;
    ExpressionPtr fallback;  // or null
  };
  Kind kind;
  int line;
  std::string text;
  std::vector<std::string> targets;
  std::string attribute;
  ExpressionPtr expression;
  ExpressionPtr condition;
  std::vector<Branch> branches;
  std::vector<Parameter> parameters;
  Body body;
  Body else_body;
};

}  // namespace ring::jinja
