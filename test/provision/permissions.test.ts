import { describe, it, vi } from "vitest";
import * as z from "zod";
import { app as sample } from "../../functions/app.ts";
import { collect } from "../../src/cli/definitions.ts";
import { createApp, defineConsumer, defineStream, fixed } from "../../src/index.ts";
import { type Permitted, startPermitted } from "../support/permitted.ts";
import type { ServerVersion } from "../support/servers.ts";
import { fly, type Samples } from "./permitted-flight.ts";

vi.spyOn(console, "log").mockReturnValue();
vi.spyOn(console, "error").mockReturnValue();

const thorough = process.env.CHAOS === "full";

const sampleOf: Samples = {
  "orders.placed": { orderId: "1", card: "tok_visa", cents: 4200, remindAfterSeconds: 3600 },
  "orders.reminder": { orderId: "1" },
  "orders.statement": { of: "month" },
  "images.resize": { url: "https://example.com/a.png", width: 100 },
};

const Task = z.object({ n: z.number() });
const work = defineStream("WORK", {
  subjects: { "work.given": Task, "work.once": Task, "work.batched": Task },
  retention: "workqueue",
  schedules: "function",
});
const news = defineStream("NEWS", { subjects: { "news.*": Task } });
const dead = defineStream("DEAD", { captures: ["dead.>"] });
const retry = { attempts: 5, backoff: fixed(50) };
/** All that consumers can have; one is provisioned by somebody else. */
const given = defineConsumer(work, "given", {
  filter: "work.given",
  deadLetter: "dead.given",
  managed: false,
  rateLimit: { messages: 100, per: "1s", burst: 10 },
  retry,
});
const once = defineConsumer(work, "once", {
  filter: "work.once",
  deadLetter: "dead.once",
  idempotency: { ttl: "1h" },
  breaker: { failureRatio: 0.1, minimum: 2, openFor: "500ms" },
  retry,
});
const batched = defineConsumer(work, "batched", {
  filter: "work.batched",
  deadLetter: "dead.batched",
  rateLimit: { messages: 100, per: "1s", burst: 10, key: ({ data }) => `${data.n}` },
  retry,
});
const parking = defineConsumer(news, "parking", {
  filter: "news.*",
  deadLetter: "dead.parking",
  maxAckPending: 50,
  idempotency: { ttl: "1h", key: ({ id }) => id.replace(/^(same:.*):\d$/, "$1") },
  retry,
});
const rich = createApp({ name: "rich", streams: [work, news, dead], fanOut: { max: 4 } })
  .on(parking, () => {})
  .on(given, () => {})
  .on(once, () => {})
  .handleBatch(batched, () => {});
const richOf: Samples = { "work.given": { n: 1 }, "work.once": { n: 1 }, "work.batched": { n: 1 }, "news.a": { n: 1 } };

describe.concurrent("with exactly its permissions", () => {
  const systems: [what: string, version: ServerVersion, exports: Record<string, unknown>, samples: Samples][] = [
    ["the sample system", "newest", { sample }, sampleOf],
    ["the sample system", "2.10", { sample }, sampleOf],
    ["the sample system", "2.9", { sample }, sampleOf],
    ["an app with all that there is", "newest", { rich }, richOf],
    ["an app with all that there is", "2.9", { rich }, richOf],
  ];
  it.for(systems)(
    "%s, on %s, does all that it can do and makes use of each",
    async ([, version, exports, samples], { expect }) => {
      await using permitted = await startPermitted(collect("app", exports), { version });
      const wrong = await fly(permitted, samples, { thorough });
      const result = { wrong, refused: await permitted.refused(), unused: unusedBy(permitted) };
      expect(result).toEqual({ wrong: [], refused: [], unused: [] });
    },
  );

  /** That something was released which its stream has forgotten takes more than five seconds to find out. */
  function unusedBy(permitted: Permitted): string[] {
    const limited = permitted.definitions.streams.filter(({ retention }) => retention === "limits");
    const rare = limited.map(({ name }) => `release $JS.API.STREAM.MSG.GET.${name}`);
    return permitted.unused().filter((one) => thorough || !rare.includes(one));
  }
});
