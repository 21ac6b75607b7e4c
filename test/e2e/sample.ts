import { createHmac, randomBytes } from "node:crypto";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { app } from "../../functions/app.ts";
import { type System, startSystem } from "../support/system.ts";
import type { Deployed, StartHost } from "./hosts.ts";

const tokens = {
  SORTIE_PUBLISH_TOKEN: "the-new-token-for-orders the-old-token-for-orders images.*:the-token-for-images",
  SORTIE_SCHEDULES_TOKEN: "the-token-for-schedules",
  SORTIE_RUN_TOKEN: "the-token-for-running",
  SORTIE_ADMIN_TOKEN: "the-token-for-all-of-it",
};
const webhookSecret = randomBytes(32).toString("base64");
const [newToken = "", oldToken = ""] = tokens.SORTIE_PUBLISH_TOKEN.split(" ");
const order = { orderId: "1", card: "tok_visa", cents: 4200, remindAfterSeconds: 3 };

interface Asked {
  readonly method?: string;
  readonly token?: string;
  readonly headers?: Record<string, string>;
  readonly body?: unknown;
}

function requestFor(path: string, { method, token, headers, body }: Asked): Request {
  const text = body === undefined || typeof body === "string" ? body : JSON.stringify(body);
  return new Request(`http://any.test/${path}`, {
    method: method ?? (body === undefined ? "GET" : "POST"),
    headers: {
      ...(body !== undefined && { "Content-Type": "application/json" }),
      ...(token && { Authorization: `Bearer ${token}` }),
      ...headers,
    },
    ...(text !== undefined && { body: text }),
  });
}

interface Running extends AsyncDisposable {
  readonly system: System;
  readonly host: Deployed;
  ask(
    path: string,
    asked?: Asked,
  ): Promise<{ status: number; type: string; body: Record<string, unknown>; response: Response }>;
  told(event: string): readonly Record<string, unknown>[];
}

async function start(startHost: StartHost): Promise<Running> {
  const system = await startSystem(app);
  const host = await startHost({
    ...tokens,
    NATS_URL: system.server.url,
    SORTIE_WEBHOOK_SECRET: `images.resize:whsec_${webhookSecret}`,
  });
  return {
    system,
    host,
    async ask(path, asked = {}) {
      const response = await host.ask(requestFor(path, asked));
      const text = await response.clone().text();
      const body = (text === "" ? {} : JSON.parse(text)) as Record<string, unknown>;
      const type = String(body.type ?? "").replace("urn:sortie:problem:", "");
      return { status: response.status, type, body, response };
    },
    told: (event) => host.log.filter((line) => line.event === event),
    async [Symbol.asyncDispose]() {
      await host[Symbol.asyncDispose]();
      await system[Symbol.asyncDispose]();
    },
  };
}

/** The sample system from outside: what is promised of HTTP and of the clock on every host, and nothing of how it is done. */
export function sample(name: string, startHost: StartHost): void {
  describe(`the sample system in ${name}`, () => {
    let running: Running;
    beforeAll(async () => {
      running = await start(startHost);
    });
    afterAll(() => running?.[Symbol.asyncDispose]());

    it("lets nobody in who does not belong, and says what is wrong with what does", async () => {
      const { system, ask } = running;
      const refused: [string, Asked, number, string][] = [
        ["publish/orders.placed", { body: order }, 401, "unauthorized"],
        ["publish/orders.placed", { body: order, token: "a-guess" }, 401, "unauthorized"],
        ["publish/orders.placed", { body: order, token: "the-token-for-images" }, 403, "forbidden"],
        ["publish/orders.placed", { body: order, token: tokens.SORTIE_RUN_TOKEN }, 403, "forbidden"],
        ["publish/dead.orders.billing", { body: order, token: tokens.SORTIE_ADMIN_TOKEN }, 404, "unknown-subject"],
        [
          "publish/$JS.API.STREAM.DELETE.ORDERS",
          { body: {}, token: tokens.SORTIE_ADMIN_TOKEN },
          404,
          "unknown-subject",
        ],
        ["publish/orders.placed", { body: { ...order, cents: 0.5 }, token: oldToken }, 422, "invalid-payload"],
        ["publish/orders.placed", { body: "{", token: oldToken }, 422, "invalid-payload"],
        ["publish/orders.placed", { body: "x".repeat(1_100_000), token: oldToken }, 413, "payload-too-large"],
        [
          "publish/orders.placed",
          { body: "a", headers: { "Content-Type": "text/plain" }, token: oldToken },
          415,
          "unsupported-media-type",
        ],
        ["publish/orders.placed", { token: oldToken }, 405, "method-not-allowed"],
        ["schedules", { token: oldToken }, 403, "forbidden"],
        ["run/billing", { method: "POST", token: oldToken }, 403, "forbidden"],
        ["run/nobody", { method: "POST", token: tokens.SORTIE_RUN_TOKEN }, 404, "consumer-unknown"],
        ["release", { method: "POST" }, 401, "unauthorized"],
        ["openapi.json", {}, 401, "unauthorized"],
        ["nothing/here", { token: tokens.SORTIE_ADMIN_TOKEN }, 404, "not-found"],
      ];
      for (const [path, asked, status, type] of refused) {
        const answer = await ask(path, asked);
        expect([path, asked.token, answer.status, answer.type]).toEqual([path, asked.token, status, type]);
        expect(answer.response.headers.get("Content-Type")).toBe("application/problem+json");
        for (const secret of Object.values(tokens).flatMap((some) => some.split(" ")))
          expect(JSON.stringify(answer.body)).not.toContain(secret);
      }
      for (const stream of ["ORDERS", "IMAGES", "DEAD"])
        expect((await system.jsm.streams.info(stream)).state.messages).toBe(0);

      expect(await ask("health")).toMatchObject({ status: 200, body: { status: "ok" } });
      const health = await ask("health", { token: tokens.SORTIE_RUN_TOKEN });
      expect(health.body.consumers).toContainEqual(expect.objectContaining({ name: "billing", lag: 0 }));
      const openapi = await ask("openapi.json", { token: oldToken });
      expect(openapi.body.openapi).toMatch(/^3\.1/);
    });

    it("charges, declines, tries again later, reminds in time, and not where that was cancelled", async () => {
      const { system, host, ask, told } = running;
      const placed = (orderId: string, card: string) =>
        ask("publish/orders.placed", {
          token: newToken,
          headers: { "Idempotency-Key": `order-${orderId}` },
          body: { ...order, orderId, card },
        });
      for (const [orderId, card] of [
        ["1", "tok_visa"],
        ["2", "tok_declined"],
        ["3", "tok_busy"],
        ["4", "tok_visa"],
      ] as const)
        expect(await placed(orderId, card)).toMatchObject({
          status: 202,
          body: { stream: "ORDERS", duplicate: false },
        });
      expect(await placed("1", "tok_visa")).toMatchObject({ status: 202, body: { sequence: 1, duplicate: true } });
      expect(await placed("1", "tok_other")).toMatchObject({ status: 422, type: "idempotency-key-reused" });

      await host.tick();
      const charged = () => told("charged").map(({ orderId, attempt }) => [orderId, attempt]);
      await expect.poll(charged).toEqual(
        expect.arrayContaining([
          ["1", 1],
          ["4", 1],
        ]),
      );
      const letter = () => system.jsm.streams.getMessage("DEAD", { last_by_subj: "dead.orders.billing" });
      await expect.poll(letter).toMatchObject({ subject: "dead.orders.billing" });
      expect((await letter())?.header.get("Sortie-Reason")).toBe("non-retriable");

      const token = tokens.SORTIE_SCHEDULES_TOKEN;
      const listed = await ask("schedules?prefix=reminder-", { token });
      expect(listed.status).toBe(200);
      const ids = (listed.body.schedules as { id: string }[]).map(({ id }) => id);
      expect(ids).toEqual(expect.arrayContaining(["reminder-1", "reminder-4"]));
      expect(ids).not.toContain("reminder-2");
      expect(await ask("schedules/reminder-4", { method: "DELETE", token })).toMatchObject({
        status: 200,
        body: { result: "cancelled" },
      });

      const [stored] = await Promise.all([system.jsm.streams.getMessage("ORDERS", { seq: 1 })]);
      const reminded = () => told("reminded").map(({ orderId }) => orderId);
      const ticked = async () => {
        await host.tick();
        return reminded().toSorted();
      };
      await expect.poll(ticked, { timeout: 25_000, interval: 500 }).toEqual(["1", "3"]);
      expect(charged()).toContainEqual(["3", 2]);
      const reminder = await system.jsm.streams.getMessage("ORDERS", { last_by_subj: "orders.reminder" });
      expect(reminder!.time.getTime() - stored!.time.getTime()).toBeGreaterThanOrEqual(3_000);
      expect(await ask("schedules/reminder-1", { token })).toMatchObject({ body: { schedule: { state: "released" } } });
      expect(await ask("schedules/reminder-1", { method: "DELETE", token })).toMatchObject({
        status: 409,
        type: "already-fired",
      });
    });

    it("takes a signed webhook once, and runs a consumer by its URL", async () => {
      const { ask, told } = running;
      const body = JSON.stringify({ url: "https://x.test/1.png", width: 10 });
      const timestamp = `${Math.floor(Date.now() / 1_000)}`;
      const signed = (text: string) =>
        createHmac("sha256", Buffer.from(webhookSecret, "base64"))
          .update(`evt_1.${timestamp}.${text}`)
          .digest("base64");
      const headers = {
        "webhook-id": "evt_1",
        "webhook-timestamp": timestamp,
        "webhook-signature": `v1,${signed(body)}`,
      };
      expect(await ask("publish/images.resize", { headers, body })).toMatchObject({
        status: 202,
        body: { duplicate: false },
      });
      expect(await ask("publish/images.resize", { headers, body })).toMatchObject({
        status: 202,
        body: { duplicate: true },
      });
      expect(await ask("publish/images.resize", { headers, body: `${body} ` })).toMatchObject({ status: 401 });
      expect(await ask("publish/orders.placed", { headers, body })).toMatchObject({ status: 401 });

      const run = await ask("run/resizer", { method: "POST", token: tokens.SORTIE_RUN_TOKEN });
      expect(run).toMatchObject({ status: 200, body: { consumers: [{ consumer: "resizer" }] } });
      await expect.poll(() => told("resized")).toHaveLength(1);
      expect(await ask("release", { method: "POST", token: tokens.SORTIE_ADMIN_TOKEN })).toMatchObject({ status: 200 });
    });

    it("answers 503 while NATS is away, stores nothing of that, and goes on when it is back", async () => {
      const { system, ask } = running;
      const placed = (orderId: string) =>
        ask("publish/orders.placed", { token: newToken, body: { ...order, orderId } });
      expect((await placed("1")).status).toBe(202);
      await system.server.kill("SIGKILL");
      const away = await placed("2");
      expect(away.status).toBe(503);
      expect(Number(away.response.headers.get("Retry-After"))).toBeGreaterThan(0);
      expect(JSON.stringify(away.body)).not.toContain("    at ");
      await system.server.start();
      await expect.poll(async () => (await placed("3")).status, { timeout: 15_000 }).toBe(202);
    });
  });
}
