import { execFile } from "node:child_process";
import { existsSync } from "node:fs";
import { cp, mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { basename, dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { unzipSync } from "fflate";

/** A resource of a CloudFormation template. */
export interface Resource {
  Type: string;
  Properties: Record<string, unknown>;
}

/** What the template says of one function. */
export interface FunctionProperties {
  FunctionName: string;
  Handler: string;
  Runtime: string;
  Architectures: string[];
  MemorySize: number;
  Timeout: number;
  ReservedConcurrentExecutions?: number;
  Environment: { Variables: Record<string, string> };
  Code: { S3Key: string };
}

/** What `osls deploy` would upload, unpacked as Lambda unpacks it. */
export interface LambdaPackage extends AsyncDisposable {
  /** The folder that a function finds as LAMBDA_TASK_ROOT. */
  readonly taskRoot: string;
  /** The files in the archive. */
  readonly files: readonly string[];
  /** The CloudFormation template's resources by their logical ids. */
  readonly resources: Readonly<Record<string, Resource>>;
  /** What the template says of a function, by its name in serverless.yml. */
  function(name: string): FunctionProperties;
}

const root = fileURLToPath(new URL("../..", import.meta.url));

/** Packages serverless.yml offline, with `settings` as the environment that it reads. */
export async function packageFunctions(settings: Record<string, string>): Promise<LambdaPackage> {
  if (!existsSync(join(root, "build/lambda/lambda.cjs"))) {
    throw new Error("build/lambda/lambda.cjs is missing; make it: npm run build:library && npm run build:lambda");
  }
  const home = await mkdtemp(join(tmpdir(), "sortie-lambda-"));
  const discard = () => rm(home, { recursive: true, force: true });
  try {
    const [service, packed, taskRoot] = [join(home, "service"), join(home, "packed"), join(home, "task")];
    await copyService(service);
    await runOsls(["package", "--package", packed], service, settings);
    const resources = await resourcesIn(packed);
    const files = await unzip(join(packed, archiveOf(resources)), taskRoot);
    return {
      taskRoot,
      files,
      resources,
      function: (name) => functionIn(resources, name),
      [Symbol.asyncDispose]: discard,
    };
  } catch (error) {
    await discard();
    throw error;
  }
}

/** A copy of the service with what its package must leave out: osls works in `.serverless/` of its folder, one at a time. */
async function copyService(folder: string): Promise<void> {
  for (const entry of ["serverless.yml", "package.json", "build", "functions"]) {
    await cp(join(root, entry), join(folder, entry), { recursive: true });
  }
}

async function runOsls(args: string[], cwd: string, settings: Record<string, string>): Promise<void> {
  const { PATH, HOME } = process.env;
  const env = { PATH, HOME, ...settings };
  const osls = join(root, "node_modules/.bin/osls");
  await promisify(execFile)(process.execPath, [osls, ...args], { cwd, env }).catch((error) => {
    throw new Error(`osls ${args[0]} failed:\n${error.stdout}${error.stderr}`);
  });
}

async function resourcesIn(folder: string): Promise<Record<string, Resource>> {
  const template = await readFile(join(folder, "cloudformation-template-update-stack.json"), "utf8");
  return (JSON.parse(template) as { Resources: Record<string, Resource> }).Resources;
}

function archiveOf(resources: Record<string, Resource>): string {
  const archives = new Set(functionsIn(resources).map(({ Code }) => basename(Code.S3Key)));
  if (archives.size !== 1) throw new Error(`Expected one archive for all functions, got ${archives.size}`);
  return [...archives].join();
}

async function unzip(archive: string, folder: string): Promise<string[]> {
  const entries = Object.entries(unzipSync(await readFile(archive)));
  for (const [name, content] of entries) {
    await mkdir(dirname(join(folder, name)), { recursive: true });
    await writeFile(join(folder, name), content);
  }
  return entries.map(([name]) => name);
}

function functionIn(resources: Record<string, Resource>, name: string): FunctionProperties {
  const found = functionsIn(resources).find(({ FunctionName }) => FunctionName.endsWith(`-${name}`));
  if (!found) throw new Error(`The template has no function "${name}"`);
  return found;
}

function functionsIn(resources: Record<string, Resource>): FunctionProperties[] {
  return Object.values(resources)
    .filter(({ Type }) => Type === "AWS::Lambda::Function")
    .map(({ Properties }) => Properties as unknown as FunctionProperties);
}
