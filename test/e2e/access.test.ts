import { Miniflare } from "miniflare";
import { expect, it } from "vitest";
import { signed } from "../http/surface.ts";
import { bundleWorker } from "../support/bundle.ts";
import { startSystem } from "../support/system.ts";
import { app } from "./workers/app.ts";

it("a Worker knows its callers: tokens, signatures, a clock by URL, and the platform's own limit", {
  timeout: 60_000,
}, async () => {
  await using system = await startSystem(app);
  const secret = Buffer.from("a secret of twenty-four bytes or more").toString("base64");
  const miniflare = new Miniflare({
    script: await bundleWorker("kicking.ts"),
    modules: true,
    compatibilityDate: "2026-07-30",
    cf: false,
    host: "127.0.0.1",
    port: 0,
    handleStructuredLogs: () => {},
    structuredWorkerdLogs: true,
    ratelimits: { SORTIE_RATE_LIMIT: { namespace_id: "1", simple: { limit: 3, period: 60 } } },
    bindings: {
      NATS_URL: system.server.url,
      SORTIE_PUBLISH_TOKEN: "jobs.other:publish-token-0123456789",
      SORTIE_RUN_TOKEN: "run-token-0123456789",
      SORTIE_WEBHOOK_SECRET: `jobs.do:whsec_${secret}`,
    },
  });
  try {
    const url = await miniflare.ready;
    const post = async (path: string, headers: Record<string, string>, body = "") => {
      const response = await fetch(new URL(path, url), {
        method: "POST",
        headers: { "Content-Type": "application/json", ...headers },
        body,
      });
      return { status: response.status, answer: (await response.json()) as Record<string, unknown> };
    };
    const bearer = (token: string) => ({ Authorization: `Bearer ${token}` });
    const job = '{"n":1}';
    expect(await post("/publish/jobs.do", signed(job, { secret }), job)).toMatchObject({ status: 202 });
    expect(await post("/publish/jobs.do", signed(job, { secret }), '{"n":2}')).toMatchObject({ status: 401 });
    expect(await post("/publish/jobs.other", bearer("publish-token-0123456789"), '"x"')).toMatchObject({ status: 202 });
    expect(await post("/publish/jobs.do", bearer("publish-token-0123456789"), job)).toMatchObject({ status: 403 });

    const run = () => post("/run/worker", bearer("run-token-0123456789"));
    expect(await run()).toMatchObject({ status: 200, answer: { consumers: [{ consumer: "worker" }] } });
    expect(await post("/release", bearer("run-token-0123456789"))).toMatchObject({ status: 200 });
    expect(await post("/run/nope", bearer("run-token-0123456789"))).toMatchObject({ status: 404 });
    const refused = { status: 429, answer: { type: "urn:sortie:problem:too-many-requests" } };
    const answers = [];
    for (let n = 0; n < 4; n++) answers.push(await run()); // the platform may begin to count anew once in between
    expect(answers).toContainEqual(expect.objectContaining({ status: 429 }));
    expect(answers.find(({ status }) => status === 429)).toMatchObject(refused);
    expect(await post("/publish/jobs.other", bearer("publish-token-0123456789"), '"y"')).toMatchObject({ status: 202 });
    await expect.poll(async () => (await system.jsm.streams.info("JOBS")).state.messages).toBe(0);
  } finally {
    await miniflare.dispose();
  }
});
