import { once } from "node:events";
import { type AddressInfo, connect } from "node:net";
import { serve as listen } from "@hono/node-server";
import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import { serve } from "../../src/adapters/fetch.ts";
import { app, handled, secrets, signed, tokens } from "../http/surface.ts";
import { type System, startSystem } from "../support/system.ts";

// `sortie/fetch` behind Node's own HTTP server, with requests that are bytes on a socket where a client would not send them
let system: System;
let url: string;
let server: ReturnType<typeof listen>;

const settings = {
  SORTIE_PUBLISH_TOKEN: tokens.publish,
  SORTIE_SCHEDULES_TOKEN: tokens.schedules,
  SORTIE_RUN_TOKEN: tokens.run,
  SORTIE_ADMIN_TOKEN: tokens.admin,
  SORTIE_WEBHOOK_SECRET: tokens.webhooks,
  CRON_SECRET: tokens.cron,
};

beforeAll(async () => {
  system = await startSystem(app);
  for (const [name, value] of Object.entries({ ...settings, NATS_URL: system.server.url })) vi.stubEnv(name, value);
  vi.spyOn(console, "log").mockReturnValue();
  const { fetch } = serve(app, {
    budget: "5s",
    rateLimit: { requests: 1_000, per: "1m" },
    address: (_request, beside) =>
      (beside as { incoming: { socket: { remoteAddress?: string } } }).incoming.socket.remoteAddress,
  });
  server = listen({ fetch, port: 0, hostname: "127.0.0.1" });
  if (!server.listening) await once(server, "listening");
  url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
});
afterAll(async () => {
  server.close();
  await system[Symbol.asyncDispose]();
  vi.unstubAllEnvs();
  vi.restoreAllMocks();
});

const bearer = (token: string) => ({ Authorization: `Bearer ${token}` });
const post = (path: string, headers: Record<string, string>, body?: string) =>
  fetch(`${url}${path}`, {
    method: "POST",
    headers: { ...(body !== undefined && { "Content-Type": "application/json" }), ...headers },
    ...(body !== undefined && { body }),
  });

/** Sends bytes as they are, and answers the status lines that come back. */
async function raw(...parts: string[]): Promise<string[]> {
  const socket = connect(Number(new URL(url).port), "127.0.0.1");
  socket.on("error", () => {}); // the server hangs up on what it has refused
  for (const part of parts) socket.write(part);
  let heard = "";
  socket.setTimeout(2_000, () => socket.destroy());
  for await (const chunk of socket) {
    heard += chunk;
    if (/\r\n\r\n/.test(heard)) socket.end();
  }
  return heard.match(/^HTTP\/1\.1 \d{3}/gm) ?? [];
}

describe("sortie/fetch under Node", () => {
  it("publishes, runs, releases, and tells how it is", async () => {
    handled.length = 0;
    const stored = await post("/publish/orders.placed", bearer(secrets.scoped), '{"orderId":"node"}');
    expect({ status: stored.status, answer: await stored.json() }).toMatchObject({
      status: 202,
      answer: { stream: "ORDERS" },
    });
    const body = '{"orderId":"hook"}';
    expect((await post("/publish/orders.placed", signed(body), body)).status).toBe(202);
    const ran = await fetch(`${url}/run/billing`, { headers: bearer(secrets.cron) }); // as Vercel's cron does
    expect({ status: ran.status, report: await ran.json() }).toMatchObject({
      status: 200,
      report: { consumers: [{ consumer: "billing", acked: 2, ended: "drained" }] },
    });
    expect(handled).toEqual([
      { orderId: "node", cents: 1 },
      { orderId: "hook", cents: 1 },
    ]);
    expect((await post("/run/billing", bearer(secrets.run))).status).toBe(200);
    expect((await post("/release", bearer(secrets.run))).status).toBe(200);
    expect((await fetch(`${url}/health`)).status).toBe(200);
    const health = await fetch(`${url}/health`, { headers: bearer(secrets.admin) });
    expect(await health.json()).toMatchObject({ status: "ok", consumers: [{ name: "billing", lag: 0 }, {}, {}] });
  });

  it("takes its settings from what it is given, where that has any", async () => {
    const { fetch } = serve(app);
    const request = () => new Request("https://api.test/openapi.json", { headers: bearer("given-token-0123456789") });
    expect((await fetch(request())).status).toBe(401);
    const given = { NATS_URL: system.server.url, SORTIE_RUN_TOKEN: "given-token-0123456789" };
    expect((await fetch(request(), given)).status).toBe(200);
    expect((await fetch(request(), { remoteAddr: {} })).status).toBe(401); // Deno's
  });

  it("answers 503 with what failed where an invocation could not do its work", async () => {
    await system.jsm.consumers.delete("ORDERS", "billing");
    const answered = await post("/run/billing", bearer(secrets.run));
    const answer = await answered.json();
    expect({ status: answered.status, answer }).toMatchObject({
      status: 503,
      answer: { type: "urn:sortie:problem:invocation-failed", detail: expect.stringContaining("billing") },
    });
  });

  it("lets nobody in by what only a socket can send", async () => {
    const head = (lines: string[]) =>
      `${["POST /publish/notes.x HTTP/1.1", "Host: x", "Content-Type: application/json", ...lines].join("\r\n")}\r\n\r\n`;
    const good = `Authorization: Bearer ${secrets.publish}`;
    const before = (await system.jsm.streams.info("ORDERS")).state.messages;
    expect(await raw(head(["Authorization: Bearer x", good, "Content-Length: 3"]), '"x"')).toEqual(["HTTP/1.1 401"]);
    expect(await raw(head([good, "Content-Length: 2000000"]))).toEqual(["HTTP/1.1 413"]); // and nothing of it is awaited
    const chunk = `10000\r\n${" ".repeat(0x10000)}\r\n`;
    expect(await raw(head([good, "Transfer-Encoding: chunked"]), ...Array<string>(17).fill(chunk))).toEqual([
      "HTTP/1.1 413",
    ]);
    const smuggled = await raw(
      head([good, "Content-Length: 3", "Transfer-Encoding: chunked"]),
      `0\r\n\r\n${head([good, "Content-Length: 3"])}"x"`,
    );
    expect(smuggled).toEqual(["HTTP/1.1 400"]);
    expect(await raw(head([good, "Idempotency-Key: a\r\nNats-Rollup: all", "Content-Length: 3"]), '"x"')).toEqual([
      "HTTP/1.1 202",
    ]);
    const latest = await system.jsm.streams.getMessage("ORDERS", { last_by_subj: "notes.x" });
    // a line of its own is a header of its own
    expect(latest?.header.keys().toSorted()).toEqual(["Nats-Expected-Stream", "Nats-Msg-Id"]);
    expect((await system.jsm.streams.info("ORDERS")).state.messages).toBe(before + 1);
  });

  it("refuses malformed options where it is made", () => {
    expect(() => serve(app, { budget: "soon" as "1s" })).toThrow(/budget: expected/);
    expect(() => serve(app, { budget: 0 })).toThrow(/budget: expected a second or more, got 0 ms/);
    expect(() => serve(app, { linger: "long" as "1s" })).toThrow(/linger/);
  });
});
