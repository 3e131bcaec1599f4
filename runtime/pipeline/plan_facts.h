// What follows from a step plan alone. Pure; any thread.
#pragma once

#include "runtime/pipeline/step_plan.pb.h"

namespace keyline {

// Tokens of all its batches.
int TokensOf(const pipeline::StepPlan& plan);
// Whether it saves lanes or restores them. Every rank answers such a plan.
bool MovesStates(const pipeline::StepPlan& plan);
// Whether rank `rank` of `ranks` owes rank 0 a StepResult for it.
bool Answers(const pipeline::StepPlan& plan, int rank, int ranks);
// Whether tokens are all that it asks for, few enough for one draw: then the last rank need not
// wait for them before it begins the next plan.
bool AsksTokensOnly(const pipeline::StepPlan& plan);

}  // namespace keyline
