import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { connect, createServer } from "node:net";
import { afterAll, describe, expect, it } from "vitest";
import { app } from "../../functions/app.ts";
import { connect as connectTo, disconnect } from "../../src/nats/connection.ts";
import { apply } from "../../src/provision/apply.ts";
import { startNatsServer } from "../../src/testing/nats-server.ts";
import { freePort } from "../support/monitoring.ts";

const tours: ChildProcess[] = [];
afterAll(() => {
  for (const { pid, exitCode, signalCode } of tours)
    if (pid && exitCode === null && signalCode === null) process.kill(-pid, "SIGKILL");
});

/** The tour as `npm start` runs it, in a process group of its own, as a terminal would give it. */
function start(...args: string[]) {
  return startAt("", ...args);
}

function startAt(natsUrl: string, ...args: string[]) {
  const child = spawn(process.execPath, ["scripts/tour.ts", ...args], {
    detached: true,
    env: { ...process.env, NATS_URL: natsUrl, NO_COLOR: "1" },
    stdio: ["ignore", "pipe", "pipe"],
  });
  tours.push(child);
  const tour = { child, said: "", exited: once(child, "exit").then(([code]) => code as number | null) };
  for (const stream of [child.stdout, child.stderr]) stream?.on("data", (chunk) => (tour.said += chunk));
  return tour;
}

async function listens(url: string | undefined): Promise<boolean> {
  const socket = connect(Number(new URL(url ?? "").port), "127.0.0.1");
  const refused = once(socket, "error").then(() => false);
  const accepted = await Promise.race([refused, once(socket, "connect").then(() => true)]);
  socket.destroy();
  return accepted;
}

const urls = (said: string) => [/ws:\/\/[\d.:]+/, /http:\/\/[\d.:]+/].map((url) => url.exec(said)?.[0]);

// at the same time, for most of a tour is waiting, as for a reminder
describe.concurrent("npm start", { timeout: 120_000 }, () => {
  it("shows each fate of a message, checks it on the server, and ends with --exit", async () => {
    const { said, code } = await (async () => {
      const tour = start("--exit", "--port", "0");
      const code = await tour.exited;
      return { said: tour.said, code };
    })();
    for (const shown of [
      /published {5}orders\.placed #1 good-/,
      /the same again, stored once/,
      /refused, 422 .*cents: .*expected number/,
      /handled {7}charged 19\.99 for good-\w+, attempt 1/,
      /retry later {3}orders\.placed #\d+, attempt 1: RetryAfterError: the payment provider is busy; again in 2 s/,
      /handled {7}charged 19\.99 for busy-\w+, attempt 2/,
      /dead letter {3}orders\.placed #\d+, attempt 1: non-retriable, NonRetriableError: card declined/,
      /dead letter {3}images\.resize #\d+: undecodable/,
      /scheduled {5}the reminder of good-/,
      /released {6}the reminder of good-\w+, \d+ ms after it was due/,
    ]) {
      expect(said).toMatch(shown);
    }
    expect(said.match(/ {2}✓ .*/g)?.length).toBeGreaterThanOrEqual(8);
    expect(said).not.toContain("not so");
    expect(code).toBe(0);
    for (const url of urls(said)) expect(await listens(url)).toBe(false);
  });

  it.for(process.env.CHAOS === "full" ? (["SIGINT", "SIGTERM"] as const) : (["SIGINT"] as const))(
    "stays up, with a curl line that works, until %s, and leaves nothing behind",
    async (signal, { expect }) => {
      const tour = start("--port", "0");
      await expect
        .poll(() => tour.said, { timeout: 60_000 })
        .toMatch(/It stays up until Ctrl-C[\s\S]*remindAfterSeconds/);
      const curl = /curl (\S+) [\s\S]*Bearer (\S+)'[\s\S]*-d '(.*)'/.exec(tour.said);
      const response = await fetch(curl?.[1] ?? "", {
        method: "POST",
        headers: { Authorization: `Bearer ${curl?.[2]}`, "Content-Type": "application/json" },
        body: curl?.[3] ?? "",
      });
      expect(response.status).toBe(202);
      await expect.poll(() => tour.said, { timeout: 10_000 }).toContain("again in 2 s");
      const pid = tour.child.pid ?? 0;
      process.kill(signal === "SIGINT" ? -pid : pid, signal); // a terminal sends Ctrl-C to the whole group
      expect(await tour.exited).toBe(0);
      for (const url of urls(tour.said)) expect(await listens(url)).toBe(false);
      expect(() => process.kill(-pid, 0)).toThrow("ESRCH"); // the group is empty
    },
  );

  it("uses the server at NATS_URL, also where all that it needs is there already", async () => {
    await using server = await startNatsServer({ config: 'authorization { user: u, password: "s3cret" }' });
    const url = server.url.replace("//", "//u:s3cret@");
    const connection = await connectTo({ url }, 5_000);
    await apply(connection, { streams: app.streams, consumers: app.bindings.map(({ consumer }) => consumer) });
    disconnect(connection);
    for (let round = 1; round <= (process.env.CHAOS === "full" ? 2 : 1); round++) {
      const tour = startAt(url, "--exit", "--port", "0");
      expect(await tour.exited, tour.said).toBe(0);
      expect(tour.said).toContain(`${server.url} (NATS_URL)`);
      expect(tour.said).not.toContain("s3cret");
    }
  });

  it.each([
    ["nats", /^NATS_URL: expected a WebSocket URL .* got nats:\/\/…\. .*$/m],
    ["ws", /^Could not connect to NATS at ws:\/\/127.0.0.1:\d+: it refuses connections .* NATS_URL.*$/m],
  ])("says in a sentence what is wrong with %s://… where nothing listens", async (scheme, sentence) => {
    const tour = startAt(`${scheme}://u:s3cret@127.0.0.1:${await freePort()}`, "--exit", "--port", "0");
    expect(await tour.exited).toBe(1);
    expect(tour.said).toMatch(sentence);
    expect(tour.said).not.toContain("s3cret");
  });

  it("says in a sentence what to do where its port is taken", async () => {
    const other = createServer().listen(0, "127.0.0.1");
    await once(other, "listening");
    const { port } = other.address() as { port: number };
    const tour = start("--exit", "--port", `${port}`);
    expect(await tour.exited).toBe(1);
    expect(tour.said.trim()).toBe(
      `Port ${port} is not to be had (EADDRINUSE): end what listens there, or choose another with \`PORT=${port + 1} npm start\`.`,
    );
    other.close();
  });
});
