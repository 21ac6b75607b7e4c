import { connect as connectTcp } from "@nats-io/transport-node";
import { describe, expect, it } from "vitest";
import { answersOn } from "../../src/nats/answers.ts";
import { connect } from "../../src/nats/connection.ts";
import { type NatsServer, startNatsServer } from "../../src/testing/nats-server.ts";
import { altered } from "../support/connections.ts";

const config = `authorization { users: [
  { user: app, password: app, permissions: { publish: { deny: ["closed.>"] } } }
  { user: deaf, password: deaf, permissions: { subscribe: { deny: ["_INBOX.>"] } } }
] }`;

const as = (user: string, { url }: NatsServer) => connect({ url: url.replace("//", `//${user}:${user}@`) }, 5_000);

/** What becomes of a request, by its outcome. */
async function outcome(asking: Promise<{ string(): string }>) {
  return asking.then(
    (answer) => ({ answer: answer.string() }),
    (error: Error) => ({ name: error.name, message: error.message, cause: (error.cause as Error | undefined)?.name }),
  );
}

describe("what is asked of a server", () => {
  it("is answered, or fails, as the client's own request does", async () => {
    await using server = await startNatsServer({ config });
    const tcp = await connectTcp({ servers: server.tcpUrl, user: "app", pass: "app", reconnect: false });
    tcp.subscribe("echo", { callback: (_, message) => void message.respond(message.data) });
    tcp.subscribe("silent", { callback: () => {} });
    const ours = answersOn(tcp, "_INBOX");
    void (async () => {
      for await (const status of tcp.status()) {
        const { error } = status as { error?: Error & { subject?: string } };
        if (error?.subject) ours.denied(error.subject, error);
      }
    })();
    const both = async (subject: string, timeout = 5_000) => {
      const one = await outcome(ours.request(subject, "hello", { timeout }));
      expect(one).toEqual(await outcome(tcp.request(subject, "hello", { timeout })));
      return one;
    };
    expect(await both("echo")).toEqual({ answer: "hello" });
    expect(await both("nobody")).toMatchObject({ name: "RequestError", cause: "NoResponders" });
    expect(await both("silent", 50)).toMatchObject({ name: "TimeoutError" });
    expect(await both("closed.door")).toMatchObject({
      name: "RequestError",
      cause: expect.stringContaining("Permission"),
    });
    expect(await both("not a subject")).toMatchObject({ name: "InvalidSubjectError" });
    const waiting = [ours, tcp].map((asking) => outcome(asking.request("silent", "", { timeout: 5_000 })));
    await tcp.close();
    const [one, other] = await Promise.all(waiting);
    const closed = { name: "RequestError", message: "connection closed" };
    expect([one, other]).toMatchObject([closed, closed]);
    expect(await both("echo")).toMatchObject({ name: "ClosedConnectionError" });
  });

  it("each has its own answer, also where one came too late, and another twice", async () => {
    await using server = await startNatsServer();
    const tcp = await connectTcp({ servers: server.tcpUrl, reconnect: false });
    tcp.subscribe("echo", {
      callback: (_, message) => {
        const again = () => void message.respond(message.data);
        if (message.string() === "late") {
          setTimeout(again, 100);
          return;
        }
        again();
        again();
      },
    });
    await tcp.flush();
    const connection = await connect({ url: server.url }, 5_000);
    const ask = async (what: string, timeout = 5_000) => (await connection.request("echo", what, { timeout })).string();
    await expect(ask("late", 20)).rejects.toMatchObject({ name: "TimeoutError" });
    const all = Array.from({ length: 500 }, (_, n) => `${n}`);
    expect(await Promise.all([...all, "late"].map((what) => ask(what)))).toEqual([...all, "late"]);
    await connection.close();
    await tcp.close();
  });

  it("fails at once where the login may not hear its answers, and a slice without a status notices by its silence", async () => {
    await using server = await startNatsServer({ config });
    const connection = await as("deaf", server);
    const asked = connection.request("$JS.API.INFO", "", { timeout: 5_000 });
    await expect(asked).rejects.toMatchObject({ code: "permission-denied" });
    const slice = altered(await as("app", server), {});
    await expect(answersOn(slice, "_INBOX").request("closed.door", "", { timeout: 100 })).rejects.toThrow(/timeout/i);
    await connection.close();
    await slice.close();
  });
});
