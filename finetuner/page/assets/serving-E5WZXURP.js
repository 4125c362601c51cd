import{j as t,l as e}from"./chunk-5IVPSIAI.js";function i(){return t(e,{title:"serving"})}export{i as default};
