import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { connect, disconnect } from "../../src/nats/connection.ts";
import { startNatsServer } from "../../src/testing/nats-server.ts";

const alive = (pid: number) => existsSync(`/proc/${pid}`);

describe("a nats-server for a test", () => {
  it("comes up on ports of its own, and comes back on them after a crash", async () => {
    await using one = await startNatsServer();
    await using other = await startNatsServer();
    const { url } = one;
    expect(url).not.toBe(other.url);
    await one.kill("SIGKILL");
    await one.start();
    expect(one.url).toBe(url);
    const connection = await connect({ url }, 5_000);
    expect(connection.info?.jetstream).toBe(true);
    disconnect(connection);
  });

  it("ends with the process that started it, however that ends", async () => {
    const source = new URL("../../src/testing/nats-server.ts", import.meta.url).href;
    const script = `const { startNatsServer } = await import(${JSON.stringify(source)}); console.log((await startNatsServer()).pid);`;
    const child = spawn(process.execPath, ["--input-type=module", "-e", script], {
      stdio: ["ignore", "pipe", "inherit"],
    });
    const [pid] = (await once(child.stdout, "data")).map(Number);
    expect(alive(pid ?? 0)).toBe(true);
    child.kill("SIGKILL");
    await expect.poll(() => alive(pid ?? 0)).toBe(false);
  });

  it("says why it does not come up", async () => {
    await expect(startNatsServer({ config: "no such setting" })).rejects.toThrow(/did not come up: it ended with 1/);
    await expect(startNatsServer({ binary: "no-such-nats-server" })).rejects.toThrow(/did not come up: .*ENOENT/);
  });
});
