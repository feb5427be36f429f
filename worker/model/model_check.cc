#include "worker/model/model_check.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/base/gigabytes.h"
#include "kernels/base/status_macros.h"
#include "worker/model/ownership.h"
#include "worker/model_files/checkpoint.h"
#include "worker/model_files/generation_config.h"
#include "worker/model_files/inventory.h"

namespace ring {
namespace {

const char* UseText(ConfigField::Use use) {
  switch (use) {
    case ConfigField::Use::kRead:
      return "";
    case ConfigField::Use::kDefault:
      return "  (absent: default)";
    case ConfigField::Use::kIgnored:
      return "  (no effect at inference)";
    case ConfigField::Use::kUnknown:
      return "  (not known: no effect)";
  }
  return "";
}

// Writes the report section by section and keeps the first failure.
class Reporter {
 public:
  void Section(absl::string_view title) {
    absl::StrAppend(&result_.report, title, "\n");
  }
  void Line(absl::string_view text) {
    absl::StrAppend(&result_.report, "  ", text, "\n");
  }
  // Writes a failure; true when there is none.
  bool Passed(const absl::Status& status) {
    if (status.ok()) return true;
    Line(absl::StrCat("REFUSED: ", status.message()));
    if (result_.status.ok()) result_.status = status;
    return false;
  }
  ModelCheck Finish() {
    Section(absl::StrCat("verdict: ", result_.status.ok() ? "ok" : "refused"));
    return std::move(result_);
  }

 private:
  ModelCheck result_;
};

void ReportConfig(const ModelConfigFile& file, Reporter* reporter) {
  for (const ConfigField& field : file.fields) {
    reporter->Line(absl::StrFormat("%-36s %s%s", field.name, field.value,
                                   UseText(field.use)));
  }
  for (const std::string& warning : file.warnings) {
    reporter->Line(absl::StrCat("warning: ", warning));
  }
}

void ReportInventory(const Inventory& inventory, size_t files,
                     Reporter* reporter) {
  reporter->Line(absl::StrCat("tensors      ", inventory.tensors, " in ", files,
                              " files, all as expected"));
  reporter->Line(absl::StrCat("parameters   ", inventory.parameters));
  reporter->Line(absl::StrCat("bytes        ", inventory.bytes, " (",
                              Gigabytes(inventory.bytes), ")"));
  if (inventory.scales > 0) {
    reporter->Line(absl::StrCat("scales       ", inventory.scales,
                                " tensors, in the bytes above"));
  }
  reporter->Line(absl::StrCat("next-token   ", inventory.next_token_tensors,
                              " tensors, ", inventory.next_token_bytes,
                              " bytes: not loaded"));
  reporter->Line(
      absl::StrCat("passed over  ", inventory.skipped_tensors, " tensors"));
}

void ReportText(const std::string& model_dir, const ModelConfig& config,
                TextCheck check, Reporter* reporter) {
  reporter->Section("tokenizer and template");
  const auto text = check(model_dir, config);
  if (reporter->Passed(text.status())) {
    for (const std::string& line : *text) reporter->Line(line);
  }
  const auto generation = ReadGenerationConfig(model_dir);
  if (reporter->Passed(generation.status())) {
    reporter->Line(absl::StrCat(
        "stops on     ", config.eos_token_ids.size(), " ids of config.json, ",
        generation->eos_token_ids.size(), " of generation_config.json"));
  }
}

void ReportRank(int number, const RankToCheck& rank, const LoadPlan& plan,
                Reporter* reporter) {
  const int64_t total = plan.memory_bytes() + rank.kv_page_bytes +
                        rank.state_slot_bytes + rank.workspace_bytes;
  reporter->Line(absl::StrCat(
      "rank ", number, " (tp_rank ", rank.shard.tp_rank, " of ", rank.shard.tp,
      ")  reads ", plan.read_bytes(), " (", Gigabytes(plan.read_bytes()),
      "), holds ", total, " (", Gigabytes(total), "): weights ",
      plan.memory_bytes(), ", KV pages ", rank.kv_page_bytes, ", state slots ",
      rank.state_slot_bytes, ", workspace ", rank.workspace_bytes));
}

void ReportRanks(const ModelConfig& config, const TensorTable& tensors,
                 RanksOfWorld ranks, Reporter* reporter) {
  reporter->Section("bytes per rank");
  const auto world = ranks(config);
  if (!reporter->Passed(world.status())) return;
  std::vector<LoadPlan> plans;
  for (const RankToCheck& rank : *world) {
    auto plan = LoadPlan::Create(config, tensors, rank.shard);
    if (!reporter->Passed(plan.status())) return;
    ReportRank(static_cast<int>(plans.size()), rank, *plan, reporter);
    plans.push_back(*std::move(plan));
  }
  if (reporter->Passed(CheckOwnership(config, tensors, plans))) {
    reporter->Line("every tensor and every expert is owned as designed");
  }
}

}  // namespace

ModelCheck CheckModel(const std::string& model_dir, TextCheck text,
                      RanksOfWorld ranks) {
  Reporter reporter;
  reporter.Section(absl::StrCat("model ", model_dir));
  reporter.Section("config.json");
  const auto file = ReadModelConfig(model_dir);
  if (!reporter.Passed(file.status())) return reporter.Finish();
  ReportConfig(*file, &reporter);
  ReportText(model_dir, file->config, text, &reporter);
  reporter.Section("tensors");
  const auto checkpoint = Checkpoint::Open(model_dir);
  if (!reporter.Passed(checkpoint.status())) return reporter.Finish();
  const auto inventory = CheckInventory(file->config, checkpoint->tensors());
  if (!reporter.Passed(inventory.status())) return reporter.Finish();
  ReportInventory(*inventory, checkpoint->files().size(), &reporter);
  ReportRanks(file->config, checkpoint->tensors(), ranks, &reporter);
  return reporter.Finish();
}

}  // namespace ring
