import { execFile } from "node:child_process";
import { promisify } from "node:util";
import { expect, it } from "vitest";

const bench = (...args: string[]) =>
  promisify(execFile)(process.execPath, ["bench/main.ts", ...args], {
    env: { ...process.env, CI: "1" },
  });

// a minute of the processor
if (process.env.CHAOS === "full") {
  it("npm run bench shows what fanning out brings", { timeout: 120_000 }, async () => {
    const { stdout, stderr } = await bench("--quick", "--only", "fan-out");
    for (const what of ["20,000 messages, a handler that does nothing", "1,000 messages, a handler that waits 10 ms"])
      expect(stdout).toContain(what);
    expect(stdout.match(/ {2}8 invocations +█* +[\d.]+×/g)).toHaveLength(2);
    expect(stdout.match(/ {2}1 invocation +[\d.k]+ +1\.00× +[\d.k]+ … [\d.k]+/g)).toHaveLength(2);
    expect(stderr).toBe("");
  });

  it("npm run bench measures a section by itself, without colours where nobody sees them", {
    timeout: 60_000,
  }, async () => {
    const { stdout, stderr } = await bench("--quick", "--only", "workerd");
    expect(stdout).toMatch(/Sortie, confirmed together +█* +[\d.]+ µs/);
    expect(stdout).toMatch(/bare fetch, ack, flush +[\d.]+ µs +1\.00× +[\d.]+ ms/);
    expect(stdout).not.toContain("\x1b");
    expect(stderr).toBe("");
  });
}

it("npm run bench says which sections there are", async () => {
  await expect(bench("--only", "everything")).rejects.toMatchObject({
    code: 1,
    stderr: expect.stringMatching(/no section "everything".*--only <throughput \| round-trips \| /s),
  });
});
