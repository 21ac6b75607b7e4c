import { afterEach, expect, it, vi } from "vitest";
import * as z from "zod";
import { type ServeOptions, serve } from "../../src/adapters/aws-lambda.ts";
import { createApp, defineConsumer, defineStream } from "../../src/index.ts";
import { startSystem } from "../support/system.ts";

const jobs = defineStream("JOBS", { subjects: { "jobs.do": z.object({ n: z.number() }) }, retention: "workqueue" });
const dead = defineStream("DEAD", { captures: ["dead.>"] });
const doing = defineConsumer(jobs, "doing", { deadLetter: "dead.jobs", concurrency: 1, batch: 1 });
const app = createApp({ streams: [jobs, dead], fanOut: { max: 2 } }).on(
  doing,
  () => new Promise((resolve) => setTimeout(resolve, 100)),
);

afterEach(() => void vi.unstubAllEnvs());

it("goes on only so far from what a schedule started", async () => {
  vi.spyOn(console, "log").mockReturnValue();
  await using system = await startSystem(app);
  vi.stubEnv("NATS_URL", system.server.url);
  const onMore = vi.fn<NonNullable<ServeOptions["onMore"]>>();
  const { pull } = serve(app, { onMore, depth: 1 });
  await Promise.all(Array.from({ length: 200 }, (_, n) => system.publish("jobs.do", { n })));
  const context = () => {
    const by = Date.now() + 2_000;
    return { getRemainingTimeInMillis: () => by - Date.now() };
  };
  expect(await pull({ source: "aws.scheduler" }, context())).toMatchObject({ continued: { asked: 2 } });
  const [places = []] = onMore.mock.calls[0] ?? [];
  expect(places).toMatchObject([{ depth: 1 }, { depth: 1 }]);
  const last = await pull(JSON.parse(JSON.stringify(places[0])), context());
  expect(last).toMatchObject({ consumers: [{ more: true }] });
  expect(last).not.toHaveProperty("continued");
  expect(onMore).toHaveBeenCalledOnce();
  vi.restoreAllMocks();
});

it("refuses what makes no sense at the deploy", () => {
  expect(() => serve(app, { depth: 0 })).toThrow("expected depth to be a whole number from 1, got 0");
  expect(() => serve(app, { keep: "90 s" as "90s" })).toThrow(
    'keep: expected milliseconds or a duration such as "30s"',
  );
});
