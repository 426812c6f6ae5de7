// The pictures to choose from, and the user's own file: read here, sent as text, never written to a disk.
const MOST = 64 * 2 ** 20;

function make(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

function choose(value) {
  props.value = value;
  draw();
  trigger("input");
}

async function take(file) {
  if (!file) return;
  if (file.size > MOST) return choose({ problem: `${file.name}: larger than ${MOST >> 20} MB` });
  if (/\.json$/i.test(file.name)) return choose({ state: await file.text() });
  const reader = new FileReader();
  reader.onload = () => {
    const data = String(reader.result).split(",")[1] || "";
    choose({ upload: { name: file.name, video: file.type.startsWith("video/"), data, } });
  };
  reader.onerror = () => choose({ problem: `${file.name}: cannot be read` });
  reader.readAsDataURL(file);
}

function draw() {
  const value = props.value || {};
  const thumbs = props.pictures.map((picture) => {
    const on = value.example && picture.ids.includes(value.example);
    const button = make("button", { type: "button", class: on ? "on" : "", "aria-pressed": Boolean(on), title: picture.ids[0] },
      make("img", { src: picture.image, alt: `example ${picture.ids[0]}` }));
    button.addEventListener("click", () => choose({ example: picture.ids[0] }));
    return button;
  });
  const input = make("input", { type: "file", accept: "image/*,video/*,.json", "aria-label": "your own image, clip or saved state" });
  input.addEventListener("change", () => take(input.files[0]));
  const text = value.upload ? value.upload.name : "your own image or clip, or a saved state: drop or choose a file";
  const drop = make("label", { class: value.upload ? "drop on" : "drop" }, text, input);
  drop.addEventListener("dragover", (event) => event.preventDefault());
  drop.addEventListener("drop", (event) => { event.preventDefault(); take(event.dataTransfer.files[0]); });
  element.querySelector(".picker").replaceChildren(make("div", { class: "thumbs" }, ...thumbs), drop);
}
draw();
watch("value", draw);
