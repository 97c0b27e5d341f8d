// Checks that a file is HAR 1.2, by the schema of its fields.
//
//   node har.mjs FILE     prints the number of entries; what is wrong goes to standard error, and the exit code is 1
import fs from "node:fs";
import Ajv from "ajv";
import schemas from "har-schema";

const har = JSON.parse(fs.readFileSync(process.argv[2], "utf8"));
const ajv = new Ajv({ allErrors: true });
ajv.addMetaSchema(JSON.parse(fs.readFileSync(new URL(import.meta.resolve("ajv/lib/refs/json-schema-draft-06.json")))));
ajv.addSchema(Object.values(schemas));
if (!ajv.validate("har.json#", har)) {
  console.error(ajv.errorsText(ajv.errors, { separator: "\n" }));
  process.exitCode = 1;
} else {
  console.log(har.log.entries.length);
}
