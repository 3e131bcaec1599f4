// Sessions and prefixes the whole way: client, gRPC, engine, pipeline of two ranks. Text and chats
// are spelled by ByteTokenizer.
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "rpc/client/client.h"
#include "rpc/server/server.h"
#include "runtime/engine/engine.h"
#include "runtime/text/chat_template.h"
#include "tests/fixtures/tiny_pipeline.h"
#include "tests/rpc/byte_tokenizer.h"
#include "tests/rpc/fake_queue.h"
#include "tests/rpc/served_queue.h"
#include "tests/runtime/files/temp_dir.h"

namespace keyline {
namespace {

using ::testing::HasSubstr;
using testing::WithPipeline;

constexpr int kImStart = 300;
constexpr int kImEnd = 301;

class ChatTokenizer : public testing::ByteTokenizer {
 public:
  ChatTokenizer() : ByteTokenizer("{{ '<|im_start|>' }}{{ '<|im_end|>' }}") {}
  int32_t Find(std::string_view token) const override {
    if (token == "<|im_start|>") return kImStart;
    return token == "<|im_end|>" ? kImEnd : ByteTokenizer::Find(token);
  }
};

void WithClient(const std::string& dir, const std::function<void(Client&)>& use) {
  WithPipeline({.ranks = 2, .lanes = 2, .cache_length = 400}, [&](Coordinator& coordinator) {
    const ChatTokenizer tokenizer;
    EngineOptions options;
    options.sessions.dir = dir;
    options.sessions.model = "tiny";
    Engine engine(coordinator, &tokenizer, options);
    ServerFacts facts;
    facts.model = coordinator.model().config();
    facts.cache = coordinator.spec().cache;
    ServeOptions serve;
    serve.address = "127.0.0.1:0";
    auto server = Server::Start(serve, facts, &tokenizer, engine);
    ASSERT_TRUE(server.ok()) << server.status();
    std::thread client([&] {
      const auto connection = Client::Connect((*server)->address());
      ASSERT_TRUE(connection.ok());
      use(**connection);
      engine.Stop();
    });
    EXPECT_TRUE(engine.Run().ok());
    client.join();
    EXPECT_TRUE((*server)->Shutdown(absl::Seconds(5)));
  });
}

v1::GenerateRequest Request(int new_tokens = 6) {
  v1::GenerateRequest request;
  request.mutable_stopping()->set_max_new_tokens(new_tokens);
  request.mutable_stopping()->set_ignore_eos(true);
  return request;
}

v1::GenerateRequest Say(const std::string& session,
                        const std::vector<std::pair<std::string, std::string>>& messages) {
  v1::GenerateRequest request = Request();
  request.set_session_id(session);
  for (const auto& [role, content] : messages) {
    v1::ChatMessage& message = *request.mutable_prompt()->mutable_chat()->add_messages();
    message.set_role(role);
    message.set_content(content);
  }
  return request;
}

std::vector<int32_t> Answer(Client& client, const v1::GenerateRequest& request,
                            v1::Usage* usage = nullptr) {
  const auto answer = client.Generate(request);
  EXPECT_TRUE(answer.ok()) << answer.status();
  if (!answer.ok()) return {};
  if (usage != nullptr) *usage = answer->finish().usage();
  EXPECT_EQ(answer->prompt_info().prompt_tokens(), answer->finish().usage().prompt_tokens());
  return {answer->output().token_ids().begin(), answer->output().token_ids().end()};
}

std::vector<int32_t> AnswerTo(Client& client, const std::vector<int32_t>& ids) {
  v1::GenerateRequest request = Request();
  for (const int32_t id : ids) request.mutable_prompt()->mutable_token_ids()->add_ids(id);
  return Answer(client, request);
}

std::vector<int32_t> operator+(std::vector<int32_t> a, const std::vector<int32_t>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

std::vector<int32_t> Bytes(const std::string& text) { return {text.begin(), text.end()}; }

absl::StatusCode CodeOf(const absl::Status& status) { return status.code(); }

TEST(Sessions, TextGoesOnWithoutAnotherBos) {
  WithClient("", [](Client& client) {
    const auto session = client.CreateSession({});
    ASSERT_TRUE(session.ok()) << session.status();
    v1::GenerateRequest request = Request();
    request.set_session_id(session->session().id());
    request.mutable_prompt()->set_text("ab");
    v1::Usage usage;
    const auto first = Answer(client, request, &usage);
    EXPECT_EQ(usage.prompt_tokens(), 3u);  // with BOS
    request.mutable_prompt()->set_text("cd");
    const auto second = Answer(client, request, &usage);
    EXPECT_EQ(usage.prompt_tokens(), 11u);
    EXPECT_EQ(usage.cached_prompt_tokens(), 8u);  // the last token had not been fed
    const std::vector<int32_t> bos = {256};
    EXPECT_EQ(second, AnswerTo(client, bos + Bytes("ab") + first + Bytes("cd")));
    request.mutable_prompt()->set_add_bos(true);
    EXPECT_EQ(CodeOf(client.Generate(request).status()), absl::StatusCode::kInvalidArgument);
  });
}

TEST(Sessions, ChatsGoOnAsTheTemplateWouldWriteThem) {
  WithClient("", [](Client& client) {
    const ChatTokenizer tokenizer;
    v1::CreateSessionRequest create;
    v1::ChatMessage& system = *create.mutable_prefix()->mutable_chat()->add_messages();
    system.set_role("system");
    system.set_content("Be brief.");
    const auto session = client.CreateSession(create);
    ASSERT_TRUE(session.ok()) << session.status();
    const std::string id = session->session().id();
    const auto first = Answer(client, Say(id, {{"user", "hi"}}));
    const auto begun = *EncodeChat(tokenizer, {{"system", "Be brief."}, {"user", "hi"}});
    EXPECT_EQ(first, AnswerTo(client, begun));
    const auto second = Answer(client, Say(id, {{"user", "and?"}}));
    const auto more = *EncodeChatContinuation(tokenizer, {{"user", "and?"}}, true, first.back());
    EXPECT_EQ(more.front(), kImEnd);
    EXPECT_EQ(second, AnswerTo(client, begun + first + more));
    // Only the system can speak before all turns.
    system.set_role("user");
    EXPECT_EQ(CodeOf(client.CreateSession(create).status()), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(CodeOf(client.Generate(Say(id, {{"robot", "x"}})).status()),
              absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(CodeOf(client.Generate(Say("nobody", {{"user", "x"}})).status()),
              absl::StatusCode::kNotFound);
  });
}

TEST(Sessions, ForkSaveRestoreListDelete) {
  const TempDir dir;
  WithClient(dir.path(), [](Client& client) {
    const std::string id = client.CreateSession({})->session().id();
    const auto first = Answer(client, Say(id, {{"user", "hi"}}));
    v1::ForkSessionRequest fork;
    fork.set_session_id(id);
    const auto forked = client.ForkSession(fork);
    ASSERT_TRUE(forked.ok()) << forked.status();
    v1::SaveSessionRequest save;
    save.set_session_id(id);
    const auto saved = client.SaveSession(save);
    ASSERT_TRUE(saved.ok()) << saved.status();
    v1::RestoreSessionRequest restore;
    restore.set_saved_name(saved->saved().name());
    const auto restored = client.RestoreSession(restore);
    ASSERT_TRUE(restored.ok()) << restored.status();
    const auto want = Answer(client, Say(id, {{"user", "so"}}));
    EXPECT_EQ(Answer(client, Say(forked->session().id(), {{"user", "so"}})), want);
    EXPECT_EQ(Answer(client, Say(restored->session().id(), {{"user", "so"}})), want);

    const auto list = client.ListSessions();
    ASSERT_TRUE(list.ok()) << list.status();
    EXPECT_EQ(list->sessions_size(), 3);
    EXPECT_EQ(list->sessions(0).id(), id);
    EXPECT_EQ(list->sessions(0).turns(), 2u);
    EXPECT_EQ(list->sessions(0).cache().policy_case(), v1::CachePolicy::kDense);
    ASSERT_EQ(list->saved_size(), 1);
    EXPECT_EQ(list->saved(0).bytes(), saved->saved().bytes());

    v1::DeleteSessionRequest remove;
    EXPECT_EQ(CodeOf(client.DeleteSession(remove).status()), absl::StatusCode::kInvalidArgument);
    remove.set_session_id(id);
    EXPECT_TRUE(client.DeleteSession(remove).ok());
    EXPECT_EQ(CodeOf(client.DeleteSession(remove).status()), absl::StatusCode::kNotFound);
    remove.set_saved_name(saved->saved().name());
    EXPECT_TRUE(client.DeleteSession(remove).ok());
    EXPECT_EQ(CodeOf(client.RestoreSession(restore).status()), absl::StatusCode::kNotFound);
    restore.set_saved_name("../../etc/passwd");
    EXPECT_EQ(CodeOf(client.RestoreSession(restore).status()), absl::StatusCode::kInvalidArgument);
    v1::GetSessionRequest get;
    get.set_session_id(id);
    EXPECT_EQ(CodeOf(client.GetSession(get).status()), absl::StatusCode::kNotFound);
  });
}

TEST(Prefixes, TextAndSystemMessagesAreComputedOnce) {
  WithClient("", [](Client& client) {
    v1::GenerateRequest request = Request();
    request.mutable_prefix()->set_text("A long prefix.");
    request.mutable_prompt()->set_text("go");
    v1::Usage usage;
    const auto first = Answer(client, request, &usage);
    EXPECT_EQ(usage.cached_prompt_tokens(), 0u);
    EXPECT_EQ(Answer(client, request, &usage), first);
    EXPECT_EQ(usage.prompt_tokens(), 17u);
    EXPECT_EQ(usage.cached_prompt_tokens(), 15u);  // with BOS
    const std::vector<int32_t> bos = {256};
    EXPECT_EQ(first, AnswerTo(client, bos + Bytes("A long prefix.go")));

    request = Say("", {{"system", "Be brief."}, {"user", "hi"}});
    const auto plain = Answer(client, request);
    request.mutable_prefix()->set_system_message(true);
    EXPECT_EQ(Answer(client, request, &usage), plain);
    EXPECT_EQ(usage.cached_prompt_tokens(), 0u);
    EXPECT_EQ(Answer(client, request, &usage), plain);
    EXPECT_GT(usage.cached_prompt_tokens(), 10u);

    const auto refused = [&](const std::string& field) {
      const absl::Status status = client.Generate(request).status();
      EXPECT_EQ(CodeOf(status), absl::StatusCode::kInvalidArgument);
      EXPECT_THAT(std::string(status.message()), HasSubstr(field));
    };
    request.mutable_prefix()->set_system_message(false);
    refused("prefix.system_message: must be true");
    request.mutable_prefix()->set_text("x");
    refused("prefix.text: goes before prompt.text");
    request.mutable_prefix()->set_tokens(0);
    refused("prefix.tokens: got 0, must be from 1");
    request.mutable_prefix()->set_tokens(1000);
    refused("prefix.tokens: got 1000, must be from 1");
    request.mutable_prefix()->Clear();
    refused("prefix: not set");
    request.set_session_id("x");
    refused("prefix: not with session_id");
    request.clear_prefix();
    request.mutable_cache()->mutable_dense();
    refused("cache: not with session_id");
  });
}

// A queue without sessions says so.
TEST(Sessions, WhereThereAreNone) {
  testing::ServedQueue served;
  EXPECT_EQ(CodeOf(served.client().CreateSession({}).status()),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(CodeOf(served.client().ListSessions().status()), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(CodeOf(served.client().Generate(Say("x", {{"user", "y"}})).status()),
            absl::StatusCode::kFailedPrecondition);
  served.server().BeginDrain();
  ClientOptions once;
  once.max_attempts = 1;
  EXPECT_EQ(CodeOf(served.NewClient(once)->CreateSession({}).status()),
            absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace keyline
